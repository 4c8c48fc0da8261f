"""gram="batch" in one process."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deit_tract import tract
from deit_tract.tract import TrAct
from tests.helpers.tract import LAYERS, error, expected, weight_gradient


def batch_case(gram="batch", **options):
    torch.manual_seed(0)
    net = nn.Sequential(
        TrAct(nn.Conv2d(3, 8, 4, 4), gram=gram, **options),
        nn.Flatten(),
        nn.GELU(),
        nn.Linear(128, 5),
    )
    return net, torch.randn(8, 3, 16, 16), torch.randint(5, (8,))


def lane_steps(net, x, y, lanes):
    for images, labels in zip(x.split(8 // lanes), y.split(8 // lanes), strict=True):
        (F.cross_entropy(net(images), labels) / lanes).backward()
    tract.finish_step(net)
    return net[0].weight.grad


def test_gram_of_the_batch_does_not_depend_on_lanes():
    net, x, y = batch_case("lane")
    whole = lane_steps(net, x, y, 1)
    for lanes in (1, 2, 4, 8):
        net, x, y = batch_case()
        assert error(lane_steps(net, x, y, lanes), whole.double()) < 1e-6
        assert (
            lanes == 1
            or error(lane_steps(batch_case("lane")[0], x, y, lanes), whole.double()) > 1e-2
        )  # not so else
        net.zero_grad()
        assert (
            error(lane_steps(net, x, y, lanes), whole.double()) < 1e-6
        )  # and the next step starts clean


def test_gram_of_the_batch_for_groups_and_other_layers():
    for name in (
        "groups",
        "groups, few rows",
        "depthwise",
        "3d",
        "linear",
        "linear, few rows",
        "unbatched",
    ):
        make, shape = LAYERS[name]
        layer, x = TrAct(make(), gram="batch"), torch.randn(shape)
        g = torch.randn(layer(x).shape)
        weight_gradient(layer, x, g)
        tract.finish_step(layer)
        assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


def test_a_step_given_up_leaves_nothing():
    net, x, y = batch_case()
    whole = lane_steps(net, x, y, 2)
    net.zero_grad()
    F.cross_entropy(net(x * 9), y).backward()  # no finish_step: the step is given up
    net.zero_grad()
    assert error(lane_steps(net, x, y, 2), whole.double()) < 1e-6
    net.zero_grad(set_to_none=False)
    F.cross_entropy(net(x * 9), y).backward()
    net.zero_grad(set_to_none=False)
    tract.reset(net)  # zeros tell nothing
    assert error(lane_steps(net, x, y, 2), whole.double()) < 1e-6


def test_forward_alone_counts_for_nothing():
    net, x, y = batch_case()
    whole = lane_steps(net, x, y, 1)
    net.zero_grad()
    net(x * 9)
    net(x).detach()
    assert error(lane_steps(net, x, y, 1), whole.double()) < 1e-6


def test_finish_step_refuses_in_a_sentence():
    net, x, y = batch_case()
    tract.finish_step(net)  # nothing done, nothing to do
    F.cross_entropy(net(x), y).backward()
    net[0].weight.grad = None  # as an engine does that keeps gradients elsewhere
    with pytest.raises(RuntimeError, match=r"0\.weight has no gradient"):
        tract.finish_step(net)
    tract.check_engine(net, 0)
    for stage in (1, 2, 3):
        tract.check_engine(batch_case("lane")[0], stage)
        with pytest.raises(ValueError, match=f"stage {stage}"):
            tract.check_engine(net, stage)


def test_gram_of_the_batch_follows_the_layer():
    layer = TrAct(nn.Conv2d(3, 8, 3), gram="batch").to("meta").to_empty(device="cpu")
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    x, g = torch.randn(4, 3, 9, 9), torch.randn(4, 8, 7, 7)
    weight_gradient(layer, x, g)
    tract.finish_step(layer)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5
