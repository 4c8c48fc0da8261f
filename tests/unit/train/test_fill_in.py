"""What a recipe leaves open: taken from the weights, the data, or the run to resume."""

import json

import pytest

from deit_tract.common.errors import UserError
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.train import fill_in as module
from tests.helpers.checkpoint import save
from tests.helpers.images import write_grey_photos

HALF = [0.5, 0.5, 0.5]


def recipe(*overrides: str, data_dir=None) -> Recipe:
    return load_recipe("folder_finetune", overrides, data_dir)


def fill_in(recipe: Recipe, folder, weights: str | None) -> Recipe:
    """Without data, as --plan does."""
    return module.fill_in(recipe, folder, weights, need_data=False)


def view(filled: Recipe) -> tuple:
    return filled.model.name, filled.model.args, filled.data.mean, filled.data.std


def test_a_timm_name_decides_the_model_and_its_normalisation(tmp_path):
    name = "vit_base_patch16_224.augreg_in21k"
    filled = fill_in(recipe(), tmp_path, f"timm:{name}")
    assert view(filled) == (name, {}, HALF, HALF) and filled.data.classes is None
    other = fill_in(recipe("data.mean=[0.1,0.2,0.3]"), tmp_path, f"timm:{name}")
    assert (other.data.mean, other.data.std) == ([0.1, 0.2, 0.3], HALF)


def test_a_run_and_an_export_tell_it_too(tmp_path):
    run = tmp_path / "run"
    place = save(run / "checkpoints", 2)
    old = recipe("model.name=test_vit", "model.args.depth=1", "data.classes=7", "data.mean=[0,0,0]")
    old = fill_in(old, tmp_path, None)
    (run / "recipe.yaml").write_text(explain(old))
    expected = ("test_vit", {"depth": 1}, [0, 0, 0], HALF)
    assert view(fill_in(recipe(), tmp_path, str(place))) == expected
    assert view(fill_in(recipe(), run, "timm:resnet50")) == expected, "a run that resumes"
    assert fill_in(recipe("data.classes=3"), run, None).data.classes == 3
    (run / "checkpoints").rename(tmp_path / "gone")
    assert fill_in(recipe(), run, "timm:resnet50").model.name == "resnet50", "it never began"
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").touch()
    config = {"architecture": "test_vit", "model_args": {"depth": 1}}
    config["pretrained_cfg"] = {"mean": [0, 0, 0], "std": HALF}
    (export / "config.json").write_text(json.dumps(config))
    assert view(fill_in(recipe(), tmp_path, str(export))) == expected


def test_classes_are_counted_and_their_origin_shown(tmp_path):
    write_grey_photos(tmp_path)
    filled = fill_in(recipe(data_dir=tmp_path), tmp_path / "run", "timm:test_vit")
    assert filled.data.classes == 2
    line = next(line for line in explain(filled).splitlines() if "classes:" in line)
    assert line.split("#")[1].strip() == f"counted in {tmp_path}"


def test_the_values_are_checked_with_the_recipe(tmp_path):
    with pytest.raises(UserError, match=r"data\.mean: 3 values for 1 channels"):
        fill_in(recipe("data.channels=1"), tmp_path, "timm:test_vit")


def test_what_nothing_tells_is_one_line(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    for weights in (None, str(file)):
        with pytest.raises(UserError, match=r"model\.name: null, but .*; set model\.name=NAME"):
            fill_in(recipe(), tmp_path, weights)
    with pytest.raises(UserError, match="did you mean"):
        fill_in(recipe(), tmp_path, "timm:resnet51")
    with pytest.raises(UserError, match=r"data\.dir: .*; give --data-dir DIR"):
        module.fill_in(recipe(), tmp_path, "timm:resnet50")
    whole = load_recipe("quickstart")
    assert fill_in(whole, tmp_path, None) is whole
