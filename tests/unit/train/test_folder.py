"""A run's folder: which data it belongs to, and when it holds a run."""

import shutil

import pytest

from deit_tract.common.errors import UserError
from deit_tract.data.sets.load import load_splits
from deit_tract.recipe.describe import explain
from deit_tract.recipe.launch import check_folder
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train.folder import check_data, describe_run
from deit_tract.train.records import FINGERPRINT
from tests.helpers.images import write_grey_photos


@pytest.fixture
def photos(tmp_path):
    write_grey_photos(tmp_path / "data")
    return tmp_path / "data"


def checked(run, photos, *overrides: str) -> dict:
    recipe = load_recipe("folder_vit_ti", ["data.classes=2", *overrides], str(photos))
    return check_data(run, recipe, load_splits(recipe.data), resumes=True)


def refused(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        checked(*arguments)
    return str(caught.value)


@pytest.fixture
def run(tmp_path, photos):
    """The folder of a run on the photos."""
    from accelerate import Accelerator

    folder = tmp_path / "run"
    folder.mkdir()
    recipe = load_recipe("folder_vit_ti", ["data.classes=2"], str(photos))
    describe_run(folder, recipe, Accelerator(cpu=True), checked(folder, photos))
    return folder


def test_the_same_data_elsewhere_is_the_same(run, photos, tmp_path):
    before = checked(run, photos)
    photos.rename(tmp_path / "moved")
    assert checked(run, tmp_path / "moved") == before


def test_other_classes_are_refused(run, photos):
    for part in ("train", "val"):
        (photos / part / "b").rename(photos / part / "c")
    message = refused(run, photos, "data.verify=false")
    assert message.startswith(f"{run}: was trained on other classes (now c instead of b); give")
    (run / FINGERPRINT).unlink()
    checked(run, photos)  # a run of an older version


def test_other_images_are_refused_unless_they_are_meant(run, photos, capsys):
    (photos / "val" / "a" / "3.png").rename(photos / "val" / "b" / "9.png")
    assert "was trained on other data (now val has other counts of its classes)" in refused(
        run, photos
    )
    (photos / "train" / "b" / "7.png").unlink()
    assert "now train has 15 images instead of 16; val" in refused(run, photos)
    checked(run, photos, "data.verify=false")
    assert "goes on with other data (train has 15 images" in capsys.readouterr().out


def test_a_validation_image_that_is_none_is_found_at_the_start(run, photos):
    (photos / "val" / "b" / "5.png").write_bytes(b"not an image")
    message = refused(run, photos)
    assert message.startswith(f"{photos / 'val/b/5.png'}: cannot be read as an image (cannot ident")
    assert "data.skip_unreadable is for training images only" in message


def test_what_a_failed_start_left_is_no_run(tmp_path):
    one = load_recipe("quickstart")
    other = load_recipe("quickstart", ["seed=1"])
    (tmp_path / "recipe.yaml").write_text(explain(one))
    (tmp_path / "metrics.jsonl").touch()
    check_folder(tmp_path, other)
    for left in ("checkpoints/step_00000001", "model.safetensors"):
        (tmp_path / left).mkdir(parents=True)
        with pytest.raises(UserError, match="holds a run of another recipe"):
            check_folder(tmp_path, other)
        shutil.rmtree(tmp_path / left)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds a run of another recipe"):
        check_folder(tmp_path, other)
