"""How well the first step of a run moves the first layer's activations."""

import pytest
import torch
from timm.layers import StdConv2d

from deit_tract.common.errors import UserError
from deit_tract.data.sets.load import load_splits
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Model
from deit_tract.results import activation_step

torch.manual_seed(0)
PATCHES = torch.randn(200, 4, dtype=torch.float64) * torch.tensor([9.0, 3.0, 1.0, 0.3])
WANTED = torch.randn(200, 3, dtype=torch.float64)


def test_the_least_squares_step_is_the_best_and_a_gradient_step_is_not():
    fitted = torch.linalg.pinv(PATCHES) @ WANTED
    cosine, best, *_ = activation_step.figures(PATCHES, WANTED, fitted.mT)
    assert cosine == pytest.approx(best, rel=1e-9)
    projected = PATCHES @ fitted
    assert best == pytest.approx(float(projected.norm() / WANTED.norm()), rel=1e-9)
    plain, same, *_ = activation_step.figures(PATCHES, WANTED, WANTED.mT @ PATCHES)
    assert same == best and plain < 0.9 * best


def test_contrast_compares_the_tenths_of_the_patches():
    contrast = torch.arange(1.0, 21, dtype=torch.float64)
    patches = contrast[:, None] * torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    wanted = torch.ones(20, 1, dtype=torch.float64)
    change = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    *_, asked, moved = activation_step.figures(patches, wanted, change)
    assert asked == pytest.approx(1.0)
    assert moved == pytest.approx((19 + 20) / (1 + 2))


def test_tract_moves_activations_more_nearly_as_their_gradient_asks(tmp_path):
    """On digits, fresh networks: over ten seeds plain reaches 0.5 to 0.8 of the best."""
    steps = []
    for lam in ("null", "0.1"):
        recipe = load_recipe("quickstart", [f"model.tract={lam}"])
        images = load_splits(recipe.data).train
        steps.append(activation_step.measure(recipe, images, "quickstart"))
    plain, with_tract = steps
    assert with_tract.best == pytest.approx(plain.best, rel=1e-4)
    assert plain.share < 0.9 and 0.95 < with_tract.share <= 1
    assert "+0." in activation_step.markdown(steps)
    activation_step.write_csv(steps, tmp_path / "steps.csv")
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_minimal_100", "resnetv2_18"])
def test_a_first_layer_that_is_no_plain_convolution_is_refused(name):
    """Conv2dSame pads by itself, StdConv2d standardises its weight."""
    model = Model(name=name, args={"conv_layer": StdConv2d} if "resnetv2" in name else {})
    recipe = load_recipe("quickstart").model_copy(update={"model": model})
    with pytest.raises(UserError, match=r"model.name: .*first layer is not a plain convolution"):
        activation_step.measure(recipe, load_splits(recipe.data).train, "quickstart")
