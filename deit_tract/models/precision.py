"""What a recipe's `precision` means on this machine: autocast, memory layout."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.recipe.launch import Device
from deit_tract.recipe.settings.recipe import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def explicit_attention(model: nn.Module) -> None:
    """Write the softmax out in place of torch's fused attention: in bf16 a CPU is faster so."""
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager:
    """Return the mixed precision of a forward pass, for a recipe that went through
    `resolve_precision`.
    """
    return _autocast(recipe.precision.autocast, device)


def _autocast(kind: str | None, device: torch.device) -> AbstractContextManager:
    return nullcontext() if kind is None else torch.autocast(device.type, DTYPES[kind])


def set_channels_last(model: nn.Module) -> None:
    """Hand the model its images with channels last in memory, in training and evaluation.

    torch's convolutions then compute in that layout and pass it on. Parameters keep their own, so
    that gradients, optimizer state, EMA and checkpoints are those of any other run; a convolution
    copies its weight, which is small beside its maps. Raises UserError for a model without
    convolutions over images.
    """
    if not any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        what = f"{type(model).__name__} has no convolutions"
        raise UserError("precision.channels_last", what, "set it to false")
    model.register_forward_pre_hook(_with_channels_last)


def _with_channels_last(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    images, *others = inputs
    return images.contiguous(memory_format=torch.channels_last), *others


@contextmanager
def evaluating(
    net: nn.Module, kind: str | None, device: torch.device
) -> Iterator[Callable[[], AbstractContextManager]]:
    """Put a model into eval mode; yields the context for each of its forward passes.

    kind: "bf16", "fp16", or None for float32. The run's own evaluations and the tools share it, so
    that a run's numbers come back to the last bit.
    """
    if kind == "bf16" and device.type == "cpu":
        explicit_attention(net)  # as the engine has it in training

    @contextmanager
    def forward_pass() -> Iterator[None]:
        # a compiled model would be compiled again, for this mode and the last batch's size
        eager = torch.compiler.set_stance("force_eager")
        with torch.inference_mode(), _autocast(kind, device), eager:
            yield

    was_training = net.training
    net.eval()
    try:
        yield forward_pass
    finally:
        net.train(was_training)


def this_device() -> Device:
    """Return what this machine's device can do."""
    if not torch.cuda.is_available():
        return Device(has_cuda=False)
    return Device(True, torch.cuda.is_bf16_supported(False), torch.cuda.get_device_name())


def resolve_precision(recipe: Recipe) -> Recipe:
    """Put this machine's precision in place of "auto": what a run uses and keeps.

    bf16, which needs no gradient scaler; on CUDA GPUs without it fp16, in which the reference was
    trained.
    """
    if recipe.precision.autocast != "auto":
        return recipe
    half = "bf16" if this_device().has_bf16 else "fp16"
    precision = recipe.precision.model_copy(update={"autocast": half})
    return recipe.model_copy(update={"precision": precision})
