"""Recipes: typed, closed, inherited, overridden, explained; every mistake named with its place."""

import json

import pytest

from deit_tract.common.errors import UserError
from deit_tract.recipe import catalogue, source
from deit_tract.recipe.describe import differences, explain, schema
from deit_tract.recipe.reference import meanings, page
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.settings.base import fields
from tests.helpers import ROOT

MINIMAL = """\
about: a test
model: {name: vit_tiny_patch16_224}
data: {name: synthetic, image_size: 32, classes: 4}
batch: {size: 8, lanes: 2}
loss: {name: ce}
optim: {name: sgd, lr: 0.1}
schedule: {steps: 10}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


def errors_of(name: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(name, overrides)
    return str(caught.value).splitlines()


def test_minimal_recipe_has_defaults_and_derived_values(write):
    recipe = load_recipe(write(MINIMAL))
    assert (recipe.name, recipe.batch.lane_size, recipe.seed, recipe.model.tract) == (
        "mine",
        4,
        0,
        None,
    )


def test_base_is_deep_per_key_and_the_child_wins(write):
    write(MINIMAL.replace("lr: 0.1", "lr: 0.1, weight_decay: 0.3"), "parent")
    recipe = load_recipe(write("base: parent\noptim: {lr: 0.2}\nseed: 5\n", "child"))
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.name, recipe.seed) == (
        0.2,
        0.3,
        "sgd",
        5,
    )


def test_a_null_switches_an_inherited_section_off(write):
    write(MINIMAL + "augment: {affine: {degrees: 5}}\n", "parent")
    assert (
        load_recipe(write("base: parent\naugment: {affine: null}\n", "child")).augment.affine
        is None
    )
    assert load_recipe(str(catalogue.find("quickstart_baseline").path)).model.tract is None


@pytest.mark.parametrize("child", ["schedule: {epochs: 3}", "schedule:\n  epochs: 3"])
def test_a_duration_in_the_other_unit_replaces_the_inherited_one(write, child):
    write(MINIMAL, "parent")
    schedule = load_recipe(write(f"base: parent\n{child}\n", "child")).schedule
    assert (schedule.epochs, schedule.steps) == (3.0, None)


def test_both_units_in_one_file_are_refused(write):
    [line] = errors_of(write(MINIMAL.replace("{steps: 10}", "{steps: 10, epochs: 3}")))
    assert "mine.yaml:7: 'epochs' is set too; give one of epochs, steps" in line


def test_an_override_beats_the_file_and_the_last_one_wins(write):
    recipe = load_recipe(write(MINIMAL), ["optim.lr=2e-2", "optim.lr=4e-3"])
    assert recipe.optim.lr == 4e-3


def test_all_mistakes_of_a_file_at_once_each_with_line_and_hint(write):
    text = (
        MINIMAL + "optm: {lr: 1}\naugment: {repeats: 0, color_jiter: 1}\nlog: {every_steps: yes}\n"
        "seed: 1\nseed: 2\n"
    )
    lines = errors_of(write(text))
    joined = "\n".join(lines)
    for expected in (
        "mine.yaml:8: no such key 'optm'; did you mean 'optim'?",
        "mine.yaml:9: 'augment.repeats' must be greater than or equal to 1, not 0",
        "mine.yaml:9: no such key 'augment.color_jiter'; did you mean 'color_jitter'?",
        "mine.yaml:10: 'log.every_steps' must be a valid integer, not \"yes\"",
        "mine.yaml:12: 'seed' is already set in line 11; keep one of them",
    ):
        assert expected in joined
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.weigth_decay=1", "no such key 'optim.weigth_decay'; did you mean 'weight_decay'?"),
        ("lr=1", "no such key 'lr'; did you mean 'optim.lr'?"),
        ("augment.affine.degres=1", "no such key 'augment.affine.degres'; did you mean 'degrees'?"),
        ("optim.name=lion", "'optim.name' must be 'lamb', 'adamw', 'adam' or 'sgd', not \"lion\""),
        ("optim=5", "'optim' is a section; set one of its keys"),
        ("batch.size=true", "'batch.size' must be a valid integer, not true"),
        ("batch.size=2.5", "'batch.size' must be a valid integer, not 2.5"),
        ("augment.affine.scale=[2, 1]", "must be [smallest, largest], not [2, 1]"),
        ("optim.betas=[1.5, 0.9]", "'optim.betas.0' must be less than 1, not 1.5"),
        ("optim.lr=1e999", "'optim.lr' must be a finite number, not Infinity"),
        ("loss.class_weights=x", "'loss.class_weights' must be 'inverse' or a valid list"),
        ("loss.class_weights=[1, -1]", "'loss.class_weights.1' must be greater than or equal to"),
        ("augment.flip=1.5", "'augment.flip' must be less than or equal to 1, not 1.5"),
        ("batch.size=9", "9 images do not divide into 2 lanes; try 8 or 10"),
        ("data.mean=[0.5]", "1 values for 3 channels; give one value per channel"),
        ("schedule.min_lr=1", "1.0 is above optim.lr 0.1; lower it"),
        ("optim.lr", "must read section.key=value"),
        ("optim.lr=[1", "not valid YAML"),
    ],
)
def test_a_bad_override_is_one_line(write, override, message):
    [line] = errors_of(write(MINIMAL), override)
    assert line.startswith(f"--set {override}: ") and message in line


def test_bce_with_smoothing_is_refused(write):
    [line] = errors_of(write(MINIMAL.replace("{name: ce}", "{name: bce, smoothing: 0.1}")))
    assert "mine.yaml:5" in line and "every smoothed class would count as positive" in line


def test_a_missing_key_and_an_empty_file(write):
    [line] = errors_of(write(MINIMAL.replace("size: 8, ", "")))
    assert line.endswith("'batch.size' is missing") and "mine.yaml" in line
    assert all("is missing" in line for line in errors_of(write("")))


def test_a_base_that_goes_round_is_refused(write):
    write("base: b\n", "a")
    [line] = errors_of(write("base: a\n", "b"))
    assert "circular base: b -> a -> b; remove one link" in line


def test_an_unknown_recipe_or_base_names_the_nearest(write):
    assert errors_of("quickstat") == ["recipe: no recipe 'quickstat'; did you mean 'quickstart'?"]
    [line] = errors_of(write("base: quickstart_baselin\n"))
    assert (
        "mine.yaml:1: no recipe 'quickstart_baselin'; did you mean 'quickstart_baseline'?" in line
    )
    assert errors_of("nowhere/x.yaml") == ["nowhere/x.yaml: no such recipe file"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-3", 0.004),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("012", 12),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("1_000", "1_000"),
        ("true", True),
        ("null", None),
        ("", None),
        ("0x10", "0x10"),
        ("'5'", "5"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    errors = []
    [(_, parsed)] = source.parse(f"x: {text}", str, errors).items()
    assert (parsed.value, type(parsed.value), errors) == (value, type(value), [])


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x\n",
        "a: !!python/object/apply:os.getcwd []\n",
        "- 1\n- 2\n",
        "a: [1\n",
        "a: [{b: 1}]\n",
        "? [1, 2]\n: 3\n",
        "a: !!int x\n",
        "a: \x00\n",
        "a: " + "[" * 5000,
        "--- 1\n--- 2\n",
    ],
)
def test_anything_but_plain_values_is_refused_with_a_place(text, write):
    for line in errors_of(write(text)):
        assert "mine.yaml" in line


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    [line] = errors_of(str(path))
    assert "cannot be read" in line


def test_explain_names_origins_and_loads_again(write):
    path = write('base: quickstart\nabout: "quotes \\" and: colons # 中"\n')
    recipe = load_recipe(path, ["optim.lr=1e-3"], data_dir="/somewhere")
    text = explain(recipe)
    assert "lr: 0.001" in text and "# --set optim.lr=1e-3" in text
    assert "recipes/quickstart.yaml:" in text and "# default" in text and "# --data-dir" in text
    again = load_recipe(write(text, "again"))
    assert again.model_dump() == recipe.model_dump() and differences(recipe, again) == []


def test_empty_arguments_drop_those_of_the_base(write):
    text = "base: quickstart\nabout: another model\nmodel: {name: resnet18, args: {}}\n"
    assert load_recipe(write(text)).model.args == {}
    recipe = load_recipe("quickstart", ["model.args={}", "model.args.depth=2"])
    assert recipe.model.args == {"depth": 2}
    assert load_recipe(write(explain(recipe), "again")).model.args == {"depth": 2}


def test_differences_name_what_decides_the_result(write):
    old = load_recipe(write(MINIMAL))
    new = load_recipe(
        write(MINIMAL), ["optim.lr=0.2", "data.workers=7", "log.every_steps=1", "model.tract=0.1"]
    )
    assert differences(old, new) == ["model.tract: null -> 0.1", "optim.lr: 0.1 -> 0.2"]


def test_explain_can_say_what_each_key_means(write):
    recipe = load_recipe("voc2007_frcnn_vgg16_tract")
    text = explain(recipe, meanings())
    lines = text.splitlines()
    above = lines[next(n for n, line in enumerate(lines) if line.startswith("  lr: ")) - 1]
    assert above == (
        "  # peak learning rate, not scaled by the batch size (number from 1e-15 to 1,000,000)"
    )
    assert max(map(len, (line for line in lines if line.lstrip().startswith("#")))) <= 100
    again = load_recipe(write(text, "again"))
    assert again.model_dump() == recipe.model_dump()


def test_the_page_of_settings_is_the_committed_one():
    committed = (ROOT / "docs/settings.md").read_text()
    assert committed == page() + "\n", "run: python train.py --schema --describe > docs/settings.md"


def properties(schema: dict) -> dict[str, dict[str, str]]:
    """What an editor shows: section to field to description. How the types are written differs
    between pydantics.
    """
    sections = {"": schema, **schema["$defs"]}
    return {
        name: {key: value.get("description", "") for key, value in section["properties"].items()}
        for name, section in sections.items()
    }


def test_schema_is_the_committed_one_and_knows_every_field():
    current = schema()
    committed = json.loads((catalogue.RECIPES / "recipe.schema.json").read_text())
    assert properties(committed) == properties(current), (
        "run: python train.py --schema > recipes/recipe.schema.json"
    )
    assert current["additionalProperties"] is False
    assert "base" in current["properties"] and "required" not in current


def test_every_field_says_what_it_is():
    for path, field in fields(Recipe):
        assert field.description, path


def numbers(node, place: str = ""):
    """Every number of a JSON schema that is not one of a few fixed values, with its place."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from numbers(item, f"{place}.{index}")
    elif isinstance(node, dict):
        if node.get("type") in ("integer", "number") and "enum" not in node:
            yield place, node
        for name, item in node.items():
            if name not in ("default", "enum"):
                yield from numbers(item, f"{place}.{name}")


def test_every_number_has_a_lower_and_an_upper_limit():
    found = dict(numbers(schema()))
    assert len(found) > 70 and any("prefixItems" in place for place in found)
    for place, number in found.items():
        assert number.keys() & {"minimum", "exclusiveMinimum"}, place
        assert number.keys() & {"maximum", "exclusiveMaximum"}, place
