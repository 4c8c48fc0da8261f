"""The layer that sees the images: finding it, and putting TrAct on it."""

import contextlib
import warnings

import torch
from torch import Tensor, nn

from .layer import TrAct, find, remove


class _Reached(Exception):
    """Ends the forward pass that looks for the first layer."""


def apply_to_first_layer(
    model: nn.Module, lam: float | None = None, *, sample=None, **options
) -> str:
    """Puts TrAct on the layer that sees the model's input and returns its name.

    That is timm's `pretrained_cfg["first_conv"]`; for other models, or if `sample` is given, the first convolution or
    linear layer called in a forward pass of `sample` (default: one image of zeros), which is stopped there.
    Raises ValueError where there is no single first layer, and what TrAct raises.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    first = config.get("first_conv") if sample is None else None
    if isinstance(first, tuple | list) and len(first) > 1:
        raise ValueError(
            f"the model has several first layers ({', '.join(first)}): call TrAct on those you mean"
        )
    name = first[0] if isinstance(first, tuple | list) else first
    if name not in dict(model.named_modules()):
        name = _first_called(model, sample)
    TrAct(model.get_submodule(name), lam, **options)
    return name


def _first_called(model: nn.Module, sample) -> str:
    names = {
        m: name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)
    }
    if not names:
        raise ValueError("the model has no convolution and no linear layer")
    called, training = [], {module: module.training for module in model.modules()}

    def reached(module, inputs):
        called.append(module)
        raise _Reached

    hooks = [module.register_forward_pre_hook(reached) for module in names]
    try:
        model.eval()
        with torch.no_grad(), contextlib.suppress(_Reached):
            model(_zeros_for(next(iter(names))) if sample is None else sample)
    except Exception as error:
        raise ValueError(
            f"the model does not take the input tried ({error}); give one as sample="
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if not called:
        raise ValueError("a forward pass called none of the model's convolutions and linear layers")
    return names[called[0]]


def _zeros_for(layer: nn.Module) -> Tensor:
    """One sample of zeros: an image of 224 x 224, 16 frames of 112 x 112, a signal of 1024, or a row of features."""
    sizes = {1: (1024,), 2: (224, 224), 3: (16, 112, 112)}
    shape = (
        (layer.in_features,)
        if isinstance(layer, nn.Linear)
        else (layer.in_channels, *sizes[len(layer.kernel_size)])
    )
    return torch.zeros(1, *shape, dtype=layer.weight.dtype, device=layer.weight.device)


def first_layer_name(model: nn.Module) -> str | None:
    """The layer that sees the images: TrAct's, else where TrAct would go; None where there is no one."""
    found = find(model)
    if found:
        return found[0][0]
    try:
        with warnings.catch_warnings():
            # TrAct warns of a frozen layer; here only the layer's name is wanted
            warnings.simplefilter("ignore", UserWarning)
            name = apply_to_first_layer(model)
    except (TypeError, ValueError):
        return None
    remove(model)
    return name
