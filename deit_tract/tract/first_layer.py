"""The layer that sees the images: finding it, and putting TrAct on it."""

import contextlib

import torch
from torch import Tensor, nn

from .layer import TrAct, check_layer, find

_SIZES = {1: (1024,), 2: (224, 224), 3: (16, 112, 112)}  # a signal, an image, frames of a video


class _Reached(Exception):
    """Ends the forward pass that looks for the first layer."""


def apply_to_first_layer(
    model: nn.Module, lam: float | None = None, *, sample=None, **options
) -> str:
    """Put TrAct on the layer that sees the model's input, and return its name.

    That is timm's `pretrained_cfg["first_conv"]`; for other models, or if `sample` is given, the
    first convolution or linear layer that a forward pass of `sample` calls (default: one image of
    zeros). The pass is stopped there.
    Raises ValueError if there is not exactly one first layer, and what TrAct raises.
    """
    name = _find_first(model, sample)
    TrAct(model.get_submodule(name), lam, **options)
    return name


def first_layer_name(model: nn.Module) -> str | None:
    """Name the layer that sees the images: TrAct's, or where it would go; None if there is none."""
    found = find(model)
    if found:
        return found[0][0]
    try:
        name = _find_first(model, None)
        check_layer(model.get_submodule(name))
    except (TypeError, ValueError):
        return None
    return name


def _find_first(model: nn.Module, sample) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    first = config.get("first_conv") if sample is None else None
    names = list(first) if isinstance(first, tuple | list) else [first]
    if len(names) > 1:
        several = ", ".join(names)
        raise ValueError(f"the model has several first layers ({several}): call TrAct on those")
    if names and names[0] in dict(model.named_modules()):
        return names[0]
    return _first_called(model, sample)


def _first_called(model: nn.Module, sample) -> str:
    kinds = nn.Linear | nn.modules.conv._ConvNd
    names = {m: name for name, m in model.named_modules() if isinstance(m, kinds)}
    if not names:
        raise ValueError("the model has no convolution and no linear layer")
    called = []
    training = {module: module.training for module in model.modules()}

    def reached(module, inputs):
        called.append(module)
        raise _Reached

    hooks = [module.register_forward_pre_hook(reached) for module in names]
    try:
        model.eval()
        with torch.no_grad(), contextlib.suppress(_Reached):
            model(_zeros_for(next(iter(names))) if sample is None else sample)
    except Exception as error:
        what = f"the model does not take the input tried ({error})"
        raise ValueError(f"{what}; give one as sample=") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not called:
        raise ValueError("a forward pass called none of the model's convolutions and linear layers")
    return names[called[0]]


def _zeros_for(layer: nn.Module) -> Tensor:
    """Make one sample of zeros that a layer takes."""
    if isinstance(layer, nn.Linear):
        shape = (layer.in_features,)
    else:
        shape = (layer.in_channels, *_SIZES[len(layer.kernel_size)])
    return torch.zeros(1, *shape, dtype=layer.weight.dtype, device=layer.weight.device)
