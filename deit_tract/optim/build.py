"""Optimizers over a model: how each is made, their parameter groups, gradient clipping.

To add an optimizer, add the line that builds it to BUILDERS, and its row to
deit_tract/recipe/optimizers.py.
"""

from collections.abc import Callable, Collection

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.optim.lamb import Lamb
from deit_tract.optim.pair import Pair
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.settings.recipe import Optim
from deit_tract.tract.first_layer import first_layer_name

Groups = list[dict]  # parameter groups as torch.optim takes them


def _lamb(optim: Optim, groups: Groups) -> Lamb:
    clip = optim.clip_grad
    return Lamb(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, max_grad_norm=clip)


def _adamw(optim: Optim, groups: Groups) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def _adam(optim: Optim, groups: Groups) -> torch.optim.Adam:
    """Adam with weight decay as part of the gradient."""
    return torch.optim.Adam(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def _sgd(optim: Optim, groups: Groups) -> torch.optim.SGD:
    momentum, nesterov = optim.momentum, optim.nesterov
    return torch.optim.SGD(groups, lr=optim.lr, momentum=momentum, nesterov=nesterov)


BUILDERS: dict[str, Callable[[Optim, Groups], torch.optim.Optimizer]] = {
    "lamb": _lamb,
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
}


def build_optimizer(optim: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over the bare model (a wrapper's prefix would hide the names below).

    Vectors, biases and what the model lists in `no_weight_decay()` (position embedding, class
    token) are not decayed, unless the recipe sets `decay_all`. Raises UserError if `first_layer`
    is set and the model has no single one.
    With `layer_decay` a group of timm's per layer has its own factor on the rate (BEiT).
    """
    build = BUILDERS[optim.name]
    groups = _groups(optim, model)
    if optim.first_layer is None:
        return build(optim, groups)
    name = first_layer_name(model)
    if name is None:
        what = f"{type(model).__name__} has no single first layer"
        raise UserError("optim.first_layer", what, "set it to null")
    first = list(model.get_submodule(name).parameters())
    for group in groups:
        group["params"] = [p for p in group["params"] if not any(p is other for other in first)]
    settings = optim.first_layer
    # relative to the rate that set_lr gives to every group
    group = {"params": first, "lr_scale": settings.lr / optim.lr}
    sgd = torch.optim.SGD([group], lr=settings.lr, momentum=settings.momentum)
    return Pair(sgd, build(optim, groups))


def _groups(optim: Optim, model: nn.Module) -> Groups:
    if optim.layer_decay is not None:
        return _with_bias_lr(_layer_groups(optim, model), model, optim.bias_lr)
    if optim.decay_all:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": trained, "weight_decay": optim.weight_decay}]
    else:
        decay = {"weight_decay": optim.weight_decay, "no_weight_decay_list": _undecayed(model)}
        groups = param_groups_weight_decay(model, **decay)
    return _with_bias_lr(groups, model, optim.bias_lr)


def _undecayed(model: nn.Module) -> Collection[str]:
    """Return what the model lists as not to be decayed."""
    return model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()


def _layer_groups(optim: Optim, model: nn.Module) -> Groups:
    """Make timm's groups of a layer each: classifier 1, layer below layer_decay, and so on."""
    return param_groups_layer_decay(
        model,
        weight_decay=optim.weight_decay,
        no_weight_decay_list=() if optim.decay_all else _undecayed(model),
        weight_decay_exclude_1d=not optim.decay_all,
        layer_decay=optim.layer_decay,
    )


def _with_bias_lr(groups: Groups, model: nn.Module, factor: float) -> Groups:
    """Split the biases off into groups that learn at `factor` times the rate (`set_lr`)."""
    if factor == 1.0:
        return groups
    biases = {id(value) for name, value in model.named_parameters() if name.endswith("bias")}
    others = []
    split = []
    for group in groups:
        others.append({**group, "params": [p for p in group["params"] if id(p) not in biases]})
        params = [p for p in group["params"] if id(p) in biases]
        split.append({**group, "params": params, "lr_scale": factor * group.get("lr_scale", 1.0)})
    return [group for group in others + split if group["params"]]


def clip_gradients(optim: Optim, model: nn.Module) -> Tensor:
    """Clip the gradients to the recipe's global norm; return the norm before, on the device."""
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if optim.clip_grad is not None and not OPTIMIZERS[optim.name].clips_itself:
        nn.utils.clip_grads_with_norm_(model.parameters(), optim.clip_grad, norm)
    return norm


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
