"""Mixed precision: what `precision.autocast` means on this machine."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

# cifar_models registers its models with timm
from deit_tract import tract  # noqa: F401
from deit_tract.recipe.settings.recipe import Recipe


def explicit_attention(model: nn.Module) -> None:
    """Softmax written out in place of torch's fused attention: in bf16 on a CPU it is the faster one."""
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager:
    """The recipe's mixed precision for a forward pass."""
    kind = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[
        resolve_precision(recipe).precision.autocast
    ]
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def resolve_precision(recipe: Recipe) -> Recipe:
    """The recipe with this machine's precision in place of "auto": what a run is and stays.

    bf16, which needs no gradient scaler; on CUDA GPUs without it fp16, in which the reference was trained.
    """
    if recipe.precision.autocast != "auto":
        return recipe
    half = (
        "fp16" if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False) else "bf16"
    )
    precision = recipe.precision.model_copy(update={"autocast": half})
    return recipe.model_copy(update={"precision": precision})
