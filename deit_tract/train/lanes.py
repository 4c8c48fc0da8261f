"""How many lanes share a forward pass."""

import os

import torch
from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.plan import cost
from deit_tract.plan.cost import Cost
from deit_tract.recipe.launch import zero_stage
from deit_tract.recipe.settings.recipe import Recipe


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


def lanes_per_forward(recipe: Recipe, net: nn.Module, device: torch.device) -> int:
    """How many lanes share a forward pass. UserError if the model forbids what the recipe asks.

    "auto" takes several only on a CUDA GPU: as many as make cost.FILLING images, fit its memory and
    may share.
    """
    if recipe.task == "detect":
        return 1
    asked = recipe.batch.lanes_per_forward
    coupled = couples_samples(net)
    if isinstance(asked, int):
        if asked > 1 and coupled:
            what = f"{coupled} depends on the other samples of a forward"
            raise UserError("batch.lanes_per_forward", what, "set it to 1 or auto")
        return asked
    wanted = cost.lanes_together(recipe)
    if device.type != "cuda" or coupled or wanted == 1 or recipe.batch.exact:
        return 1
    if zero_stage(os.environ) is not None:  # DeepSpeed counts lanes as forward passes
        return 1
    with torch.device("meta"):
        measured: Cost = cost.measure(recipe, build_model(recipe))
    needed = sum(cost.estimate_memory(recipe, measured).values())
    free = torch.cuda.get_device_properties(device).total_memory - needed
    return max(1, min(wanted, 1 + free // max(measured.activations, 1)))
