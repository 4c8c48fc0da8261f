"""Channels last in memory: the same numbers up to rounding, and nothing of it in what is saved."""

import copy

import pytest
import torch
from torch import nn

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.models.precision import set_channels_last
from deit_tract.recipe.resolve import load_recipe

KEYS = ["model.args.channels_last=false", "data.resident=false"]


def build(channels_last: bool) -> nn.Module:
    last = f"precision.channels_last={str(channels_last).lower()}"
    net = build_model(load_recipe("cifar10_cnn_8ep_sgd_tract", [*KEYS, last])).double()
    for _, layer in tract.find(net):
        layer.lanes = 2
    return net


def test_channels_last_changes_rounding_only():
    """Logits, gradients (with TrAct, two lanes) and running statistics in float64."""
    plain, last = build(False), build(True)
    seen = []
    last.layer1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].stride()))
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    for net in (plain, last):
        net.train()(images).square().sum().backward()
    assert seen[0][1] == 1  # the channels of a pixel are neighbours
    pairs = zip(plain.named_parameters(), last.parameters(), strict=True)
    for (name, ours), other in pairs:
        torch.testing.assert_close(other.grad, ours.grad, rtol=1e-9, atol=1e-9, msg=name)
    for (name, ours), other in zip(plain.named_buffers(), last.buffers(), strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-9, atol=1e-9, msg=name)
    with torch.inference_mode():
        logits = plain.eval()(images)
        for net in (last.eval(), copy.deepcopy(last)):  # an EMA is a copy
            torch.testing.assert_close(net(images), logits, rtol=1e-9, atol=1e-9)
    state = last.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert all(parameter.grad.is_contiguous() for parameter in last.parameters())


def test_a_model_without_convolutions_has_no_channels_last():
    with pytest.raises(UserError, match=r"precision.channels_last: Linear has no convolutions; se"):
        set_channels_last(nn.Linear(3, 2))
