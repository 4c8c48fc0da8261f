"""How many lanes share a forward pass."""

import os

import torch
from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.plan.cost import estimate_memory, measure
from deit_tract.recipe.launch import zero_stage
from deit_tract.recipe.settings.recipe import Recipe

FILLING = 256  # images, choice: lanes below it share a forward pass on a GPU


def couples_samples(model: nn.Module) -> str | None:
    """The layer because of which lanes cannot share a forward pass; None if there is none.

    Batch normalisation takes statistics of all samples; dropout draws in the order of all samples.
    """
    for name, layer in model.named_modules():
        normalises = isinstance(layer, nn.modules.batchnorm._NormBase)
        draws = [getattr(layer, key, 0.0) for key in ("p", "prob", "drop_prob")]
        if normalises or any(isinstance(p, float) and p > 0 for p in draws):
            return f"{name} ({type(layer).__name__})"
    return None


def check_shared_forward(recipe: Recipe, net: nn.Module) -> None:
    """Raise UserError if the recipe lets lanes share a forward pass and the model forbids it."""
    coupled = couples_samples(net)
    if recipe.batch.lanes_per_forward not in ("auto", 1) and coupled:
        what = f"{coupled} depends on the other samples of a forward"
        raise UserError("batch.lanes_per_forward", what, "set it to 1 or auto")


def lanes_per_forward(recipe: Recipe, net: nn.Module, device: torch.device) -> int:
    """How many lanes share a forward pass. UserError if the model forbids what the recipe asks.

    "auto" takes several only on a CUDA GPU: as many as make FILLING images, fit its memory and may
    share.
    """
    if recipe.task == "detect":
        return 1
    batch = recipe.batch
    check_shared_forward(recipe, net)
    if batch.lanes_per_forward != "auto":
        return batch.lanes_per_forward
    wanted = min(batch.lanes, max(1, FILLING // batch.lane_size))
    if device.type != "cuda" or wanted == 1 or batch.exact or couples_samples(net):
        return 1
    if zero_stage(os.environ) is not None:  # DeepSpeed counts lanes as forward passes
        return 1
    with torch.device("meta"):
        cost = measure(recipe, build_model(recipe))
    needed = sum(estimate_memory(recipe, cost).values())
    free = torch.cuda.get_device_properties(device).total_memory - needed
    return max(1, min(wanted, 1 + free // max(cost.activations, 1)))
