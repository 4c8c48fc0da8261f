"""Broken recipes at the loader: a valid recipe or its user's mistakes, a line each; none is run."""

import contextlib
import json

import pytest

from deit_tract.common.errors import UserError
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.fuzz import BOMB, assert_lines, assert_mistakes, at_most


def test_a_broken_recipe_is_its_users_mistake(tmp_path):
    """The first hundred; tests/long has the others."""
    assert_mistakes(range(100), tmp_path)


EXTREME = [
    "data.image_size=2147483647",
    "data.classes=2147483647",
    "batch.size=2147483644",
    "schedule.epochs=1e6",
    "schedule.steps=2147483647",
    "optim.lr=1.7e308",
    "model.args.embed_dim=0",
    "model.args.num_heads=0",
    "model.args.patch_size=0",
    "model.args.norm_layer=os.system",
    "model.args.embed_dim=99999999999999999999999",
    "augment.repeats=2147483647",
    "evaluate.every_epochs=1e-300",
    "model.tract=1e-320",
    'model.name="["',
    'data.dir="\\0"',
]


@pytest.mark.parametrize("setting", EXTREME)
def test_an_extreme_value_is_planned_or_refused(tmp_path, setting):
    with contextlib.suppress(UserError), at_most(60):
        recipe = load_recipe("quickstart", [setting])
        assert show_plan(make_plan(recipe, tmp_path / "run"))


def write(folder, text: str, name: str = "mine") -> str:
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as error, at_most(60):
        load_recipe(*arguments)
    assert_lines(error.value)
    return str(error.value)


def test_what_would_never_end_is_refused_at_once(tmp_path):
    assert "aliases are not allowed" in refusal(write(tmp_path, BOMB))
    assert "bytes, no recipe has more than" in refusal(write(tmp_path, "# x\n" * 100_000))
    for i in range(50):
        write(tmp_path, f"base: b{i + 1}\n", f"b{i}")
    assert "more than 20 levels of base" in refusal(str(tmp_path / "b0.yaml"))
    assert "circular base" in refusal(write(tmp_path, "base: mine\n"))
    assert "nested deeper than 20" in refusal(
        write(tmp_path, "base: quickstart\nabout: " + "[" * 40 + "]" * 40)
    )
    assert "not valid YAML" in refusal(write(tmp_path, "about: " + "[" * 100_000))


def test_thousands_of_mistakes_are_answered_at_once(tmp_path):
    """The first ones are explained, the others counted: each explanation takes a search."""
    unknown = "".join(f"a_key_that_is_not_there_{i}: 1\n" for i in range(5000))
    with at_most(10), pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, "base: quickstart\nsed: 1\n" + unknown))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("mine.yaml:2: no such key 'sed'; did you mean 'seed'?")
    assert len(lines) == 21 and "4,981 more mistakes" in lines[-1]


def test_a_recipe_loads_no_weights_of_its_own():
    for key in ("pretrained=true", "checkpoint_path=a.pth", "pretrained_cfg={file: a.pth}"):
        assert "a recipe loads no weights" in refusal("quickstart", [f"model.args.{key}"])


def test_one_override_sets_one_key():
    assert "sets more than one key" in refusal("quickstart", ["model.args.x=1\nseed: 5"])


@pytest.mark.parametrize(
    "text",
    [
        "\x7f",
        "\x85",
        "\u2028",
        "a\nb",
        "\U000e0001",
        "\ufeff",
        "🎉 # : ' \" \\\\ \t",
        "true",
        "1e5",
    ],
)
def test_any_text_survives_explain(tmp_path, text):
    recipe = load_recipe(
        write(
            tmp_path,
            json.dumps({"base": "quickstart", "about": text}, ensure_ascii=ord(max(text)) < 2**16),
        )
    )
    assert recipe.about == text
    assert load_recipe(write(tmp_path, explain(recipe), "again")).about == text
