"""Runs on the fast pipeline."""

import pytest

from deit_tract.common.errors import UserError
from deit_tract.data.transforms import fast
from tests.helpers.runs import losses, short, train

# ---- training ------------------------------------------------------------------------------------


def test_where_nothing_is_resized_training_is_the_same(tmp_path):
    runs = {
        name: losses(train(tmp_path / name, *short(4, f"data.pipeline={name}")))
        for name in ("exact", "fast")
    }
    assert runs["exact"] == runs["fast"]


SMALL = [
    "data.name=synthetic",
    "data.image_size=16",
    "data.channels=3",
    "data.mean=[0.5,0.5,0.5]",
    "data.std=[0.2,0.2,0.2]",
    "augment.crop_scale=[0.08,1]",
    "augment.flip=0.5",
    "augment.three_augment=true",
    "augment.color_jitter=0.3",
    "data.pipeline=fast",
    "save.every_steps=2",
]


@pytest.mark.parametrize("defer", [False, True])
def test_a_run_that_goes_on_and_any_workers_see_the_same_pixels(tmp_path, monkeypatch, defer):
    monkeypatch.setattr(fast.torch.cuda, "is_available", lambda: False)
    if defer:  # as with a GPU, computed here
        make = fast.FastTransform
        monkeypatch.setattr(fast, "FastTransform", lambda recipe, defer: make(recipe, defer=True))

    def run(name: str, *more: str) -> list[float]:
        return losses(train(tmp_path / name, *short(4, *SMALL, *more)))

    whole = run("whole", "data.workers=0")
    assert run("workers", "data.workers=2") == whole
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    (tmp_path / "whole" / "checkpoints" / "step_00000002").rename(
        tmp_path / "again" / "checkpoints" / "step_00000002"
    )
    assert run("again", "data.workers=1") == whole[2:]


def test_a_run_does_not_change_its_pipeline(tmp_path):
    train(tmp_path, *short(1))
    with pytest.raises(UserError, match=r'data.pipeline: "exact" -> "fast"'):
        train(tmp_path, *short(1, "data.pipeline=fast"))
