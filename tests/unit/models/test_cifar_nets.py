"""The 36 networks of TrAct's Table 1 against figures made with the reference's code.

tests/long/test_cifar_nets.py has the logits of the larger ones; there and in tests/runs each kind
takes two steps.
"""

import random

import pytest
import timm
import torch
from torch import nn

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.models.cifar.blocks import Residual
from deit_tract.models.cifar.nets import NETS
from deit_tract.plan.cost import measure
from deit_tract.recipe import published
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.cifar_nets import FIGURES, SMALL, logits

# channels, kernel, padding, bias of the first layer, where it is not 64, 3, 1, False
FIRST = {
    "squeezenet": (96, 3, 1, True),
    "mobilenet": (32, 3, 1, False),
    "mobilenetv2": (32, 1, 1, True),
    "shufflenet": (24, 3, 1, True),
    "shufflenetv2": (24, 3, 1, True),
    "densenet161": (96, 3, 1, False),
    "inceptionv3": (32, 3, 1, False),
    "inceptionv4": (32, 3, 0, False),
    "inceptionresnetv2": (32, 3, 0, False),
    "xception": (32, 3, 1, False),
    "nasnet": (44, 3, 1, False),
    "wideresnet": (16, 3, 1, True),
}
WITH_BIAS = ("vgg", "seresnet", "stochasticdepth")


def empty(name: str) -> nn.Module:
    """A network without numbers."""
    with torch.device("meta"):
        return timm.create_model("cifar_net", net=name, num_classes=100)


def test_they_are_the_papers_36():
    assert list(NETS) == list(FIGURES) and len(published.read()["cifar100"]["models"]) == 36


@pytest.mark.parametrize("name", FIGURES)
def test_parameters_and_first_layer_are_the_references(name):
    net = empty(name)
    assert sum(p.numel() for p in net.parameters()) == FIGURES[name][0]
    first = net.get_submodule("features.0.0")
    width, kernel, padding, bias = FIRST.get(name, (64, 3, 1, name.startswith(WITH_BIAS)))
    assert tuple(first.weight.shape) == (width, 3, kernel, kernel)
    assert (first.padding, first.stride) == ((padding,) * 2, (1, 1))
    assert (first.bias is not None) == bias
    assert tract.first_layer_name(net) == "features.0.0"
    assert list(net.state_dict())[-2:] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_references(name):
    assert logits(name) == pytest.approx(FIGURES[name][1:], rel=2e-6)


def test_googlenets_eps_are_the_references():
    layers = empty("googlenet").modules()
    eps = [layer.eps for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert [value for value in eps if value != 1e-5] == [32, 96, 48, 64, 64, 64, 128, 128, 128]


def test_stochastic_depth_keeps_less_with_depth():
    blocks = [one for one in empty("stochasticdepth18").modules() if isinstance(one, Residual)]
    assert [block.keep for block in blocks] == pytest.approx([1 - n / 14 for n in range(8)])


def test_a_dropped_body_has_no_gradient_and_a_kept_one_its_own():
    """Draws are Python's: the same seed drops the same blocks."""
    block = Residual(nn.Linear(2, 2), keep=0.5)
    x = torch.randn(3, 2)
    kept = []
    for seed in range(40):
        random.seed(seed)
        block.zero_grad()
        out = block(x)
        kept.append(not torch.equal(out, x))
        if kept[-1]:
            torch.testing.assert_close(out, x + block.body(x))
            out.sum().backward()
        assert (block.body.weight.grad is not None) == kept[-1]
    assert 10 <= sum(kept) <= 30
    torch.testing.assert_close(block.eval()(x), x + 0.5 * block.body(x))


def test_the_plan_counts_stochastic_depth_with_all_blocks():
    recipe = load_recipe("table1_stochasticdepth18_200ep", ["batch.size=4"])
    costs = set()
    for seed in range(3):
        random.seed(seed)
        with torch.device("meta"):
            costs.add(measure(recipe, build_model(recipe)))
    (cost,) = costs
    assert cost.forward == pytest.approx(2 * 0.555e9, rel=2e-3)  # the reference's GMAC


def test_an_unknown_network_is_one_line():
    with pytest.raises(UserError, match=r"model.args: .*net is one of squeezenet, .*'resnet19'"):
        build_model(load_recipe("table1_resnet18_200ep", ["model.args.net=resnet19"]))
