"""Optimizers, their parameter groups, gradient clipping, and the learning rate as a pure function of the step."""

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.optim.lamb import Lamb
from deit_tract.optim.pair import Pair
from deit_tract.recipe.settings.recipe import Optim
from deit_tract.tract.first_layer import first_layer_name


def build_optimizer(optim: Optim, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over the bare model: a wrapper's prefix would hide the names that skip weight decay.

    Vectors, biases and what the model lists in `no_weight_decay()` (position embedding, class token) are not decayed,
    unless the recipe has `decay_all`. Raises UserError where `first_layer` is set and the model has no single one.
    """
    groups = _groups(optim, model)
    if optim.first_layer is None:
        return _optimizer(optim, groups)
    name = first_layer_name(model)
    if name is None:
        raise UserError(
            "optim.first_layer",
            f"{type(model).__name__} has no single first layer",
            "set it to null",
        )
    apart, own = list(model.get_submodule(name).parameters()), optim.first_layer
    for group in groups:
        group["params"] = [p for p in group["params"] if not any(p is other for other in apart)]
    scale = {
        "params": apart,
        "lr_scale": own.lr / optim.lr,
    }  # of the rate that set_lr hands to every group
    return Pair(
        torch.optim.SGD([scale], lr=own.lr, momentum=own.momentum), _optimizer(optim, groups)
    )


def _groups(optim: Optim, model: nn.Module) -> list[dict]:
    if optim.decay_all:
        groups = [
            {
                "params": [p for p in model.parameters() if p.requires_grad],
                "weight_decay": optim.weight_decay,
            }
        ]
    else:
        skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        groups = param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=skip)
    return _with_bias_lr(groups, model, optim.bias_lr)


def _optimizer(optim: Optim, groups: list[dict]) -> torch.optim.Optimizer:
    if optim.name == "lamb":
        return Lamb(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, max_grad_norm=optim.clip_grad
        )
    if optim.name in ("adamw", "adam"):  # adam: weight decay as part of the gradient
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optim.name]
        return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def _with_bias_lr(groups: list[dict], model: nn.Module, factor: float) -> list[dict]:
    """The groups with their biases apart, which learn at `factor` times the rate (`set_lr`)."""
    if factor == 1.0:
        return groups
    biases = {id(value) for name, value in model.named_parameters() if name.endswith("bias")}
    rest = [
        {**group, "params": [p for p in group["params"] if id(p) not in biases]} for group in groups
    ]
    apart = [{**group, "params": [p for p in group["params"] if id(p) in biases], "lr_scale": factor}
             for group in groups]  # fmt: skip
    return [group for group in rest + apart if group["params"]]


def clip_gradients(optim: Optim, model: nn.Module) -> Tensor:
    """Clip the gradients to the recipe's global norm and return the norm before, on the device."""
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if optim.clip_grad is not None and optim.name != "lamb":  # LAMB clips inside its step
        nn.utils.clip_grads_with_norm_(model.parameters(), optim.clip_grad, norm)
    return norm


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
