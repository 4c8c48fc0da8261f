"""What the plan and the start of a run remark: the warm-up, float32, another batch."""

import pytest

from deit_tract.plan.remarks import other_batch, remarks
from deit_tract.recipe.resolve import load_recipe

TWO_EPOCHS = ["schedule.epochs=2", "schedule.warmup_lr=1e-6"]


@pytest.mark.parametrize(
    ("overrides", "stays"),
    [
        (["schedule.warmup_epochs=1", "schedule.update=step"], False),
        (["schedule.warmup_epochs=1", "schedule.update=epoch"], True),  # one epoch late
        (["schedule.warmup_epochs=2", "schedule.update=step"], True),
        (["schedule.warmup_epochs=0", "schedule.update=epoch"], False),
    ],
)
def test_a_run_that_never_leaves_the_warm_up(overrides, stays):
    recipe = load_recipe("quickstart", [*TWO_EPOCHS, *overrides])
    found = list(remarks(recipe, 20, ""))
    assert len(found) == stays
    if stays:
        assert found[0].startswith("the run never leaves the warm-up: the last rate is ")
        assert found[0].endswith("train longer, or --set schedule.warmup_epochs=0")


def test_float32_is_remarked_on_a_gpu_only():
    recipe = load_recipe("quickstart")
    assert list(remarks(recipe, 20, "")) == []
    assert list(remarks(recipe, 20, "NVIDIA A40")) == [
        "float32, but NVIDIA A40 has 4 times the peak in 16 bits: --set precision.autocast=auto"
    ]
    assert "is faster in 16 bits" in next(remarks(recipe, None, "a GPU of tomorrow"))
    half = load_recipe("quickstart", ["precision.autocast=bf16"])
    assert list(remarks(half, 20, "NVIDIA A40")) == []


def test_the_rates_for_another_batch():
    own = load_recipe("quickstart")  # 64 images, 8e-3
    assert list(other_batch(own, own)) == []
    (found,) = other_batch(load_recipe("quickstart", ["batch.size=256"]), own)
    assert "optim.lr 0.008 is kept" in found
    assert "linearly it would be 0.032, by the square root 0.016" in found
