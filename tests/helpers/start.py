"""Shared by the tests of start."""

import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.train import start

PRETRAINED = ["model.pretrained=true"]


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", ["data.workers=0", *overrides])


def started(source: object, *overrides: str) -> tuple[torch.nn.Module, str]:
    settings = recipe(*overrides)
    net = build_model(settings)
    return net, start.load_start_weights(net, settings, str(source))


def fails(source: object, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        started(source, *overrides)
    return str(caught.value)
