"""What a failed start, an unreadable image or a kill must not cost."""

import pytest

from deit_tract.common.errors import UserError
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import loop
from tests.helpers.images import write_grey_photos
from tests.helpers.runs import short, train

GREY = short(
    2,
    "data.workers=0",
    "data.classes=2",
    "data.image_size=16",
    "batch.size=8",
    "batch.lanes=2",
    "augment.repeats=1",
    "model.args.depth=1",
    "model.args.patch_size=4",
)


@pytest.fixture
def photos(tmp_path):
    """Two classes of grey photos, as arguments of `train`."""
    write_grey_photos(tmp_path / "data")
    return {"recipe": "folder_vit_ti", "data_dir": str(tmp_path / "data")}


def test_a_start_that_fails_leaves_its_folder_to_the_correction(tmp_path, monkeypatch):
    right = short(1, "data.workers=0")

    def fails(match: str, *wrong: str, weights: str | None = None) -> None:
        with pytest.raises(UserError, match=match):
            loop.train(load_recipe("quickstart", [*right, *wrong]), tmp_path / "run", weights)

    fails("data.classes: 11, but the data has 10", "data.classes=11")
    fails("vit_no_such", "model.name=vit_no_such")
    missing = str(tmp_path / "no")
    fails("no such file or folder", "model.pretrained=true", weights=missing)
    fails("no such folder", "data.name=folder", f"data.dir={missing}")
    fails("published", "expect.published=no_such")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "build_task", interrupted)
        train(tmp_path / "run", *right, "seed=1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Run, "optimizer_step", interrupted)
        train(tmp_path / "run", *right, "seed=2")
    assert train(tmp_path / "run", *right)[-1]["step"] == 1


def test_a_run_goes_on_and_is_fine_tuned_with_its_own_classes_only(tmp_path, photos):
    train(tmp_path / "run", *GREY, "save.every_steps=1", **photos)
    (tmp_path / "run" / "checkpoints" / "step_00000002").rename(tmp_path / "away")
    (tmp_path / "data").rename(tmp_path / "moved")
    photos["data_dir"] = str(tmp_path / "moved")
    train(tmp_path / "run", *GREY, **photos)
    for part in ("train", "val"):
        (tmp_path / "moved" / part / "b").rename(tmp_path / "moved" / part / "c")
    with pytest.raises(UserError, match="was trained on other classes"):
        train(tmp_path / "run", *GREY, **photos)
    name, folder = photos.values()
    finetuned = load_recipe(name, [*GREY, "model.pretrained=true"], folder)
    with pytest.raises(UserError, match=r"classifier is for other classes \(now c instead of b\)"):
        loop.train(finetuned, tmp_path / "next", str(tmp_path / "run"))
    fresh = load_recipe(name, [*GREY, "model.pretrained=true", "model.new_head=true"], folder)
    loop.train(fresh, tmp_path / "next", str(tmp_path / "run"))
