"""LAMB in few launches: torch's fused Adam kernel makes the direction, foreach operations the rest.

You et al. 2020 (arXiv:1904.00962, Algorithm 2) as in apex's FusedLAMB, which DeiT-III trained with:
the gradient is first clipped to a global norm; weight decay is part of the update, so the trust
ratio sees it; tensors without decay have no trust ratio. The file needs only torch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = list[Tensor]
# device types whose fused Adam kernel is used; the others use foreach operations
FUSED = {"cpu", "cuda"}
# device types whose tensors are updated one after another, with norms read by the host
ONE_BY_ONE = {"cpu"}


class Lamb(torch.optim.Optimizer):
    """LAMB over float parameters of one device; nothing in `step` waits for the device.

    max_grad_norm: limit of the norm of all gradients together; None does not clip. After a step
    with the fused kernel, `grad` holds the clipped gradient. `grad_norm` is the norm before
    clipping, on the device; None if nothing is clipped.
    `state_dict` has timm.optim.Lamb's keys and loads what that has saved.
    """

    def __init__(
        self,
        params,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"max_grad_norm": max_grad_norm})
        self.grad_norm: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update the parameters; those without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        every = [p for params in groups for p in params]
        clip = self._clip([p.grad for p in every]) if every else None
        for group, params in zip(self.param_groups, groups, strict=True):
            group["step"] = int(group.get("step", 0)) + 1  # a tensor in timm's checkpoints
            if params and group["weight_decay"] == 0:
                self._adam(group, params, params, clip, group["lr"])
            elif params and params[0].device.type in ONE_BY_ONE:
                self._update_one_by_one(group, params, clip)
            elif params:
                self._update(group, params, clip)
        return loss

    def _clip(self, grads: Tensors) -> Tensor | None:
        """The factor that gradients are divided by, as float32, which the kernel takes."""
        limit = self.defaults["max_grad_norm"]
        if limit is None:
            return None
        if grads[0].device.type in ONE_BY_ONE:
            norm = torch.tensor(math.sqrt(sum(_square(grad) for grad in grads)))
        else:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        self.grad_norm = norm.float()
        return (self.grad_norm / limit).clamp_(min=1.0)

    def _room(self, params: Tensors) -> Tensor:
        """Memory for one update, kept between steps: a CPU allocates as slowly as it fills."""
        size = max(p.numel() for p in params)
        room = getattr(self, "_kept_room", None)
        if room is None or len(room) < size or room.dtype != params[0].dtype:
            self._kept_room = room = params[0].new_empty(size)
        return room

    def _update_one_by_one(self, group: dict, params: Tensors, clip: Tensor | None) -> None:
        """With weight decay and trust ratio, one tensor after another while it is in the cache.

        On a CPU the step is memory-bound: what matters is how often each value is read. There is no
        device to synchronise with.
        """
        room = self._room(params)
        for p in params:
            update = room[: p.numel()].as_strided(p.shape, p.stride())
            weight = _square(p)
            self._adam(group, [torch.mul(p, group["weight_decay"], out=update)], [p], clip, -1.0)
            norm = _square(room[: p.numel()])
            ratio = math.sqrt(weight / norm) if weight > 0 and norm > 0 else 1.0
            p.add_(update, alpha=-group["lr"] * ratio)

    def _update(self, group: dict, params: Tensors, clip: Tensor | None) -> None:
        """With weight decay and trust ratio, in launches for all tensors together."""
        updates = torch._foreach_mul(params, group["weight_decay"])
        self._adam(group, updates, params, clip, -1.0)
        weight = torch.stack(torch._foreach_norm(params))
        update = torch.stack(torch._foreach_norm(updates))
        ratio = torch.where((weight > 0) & (update > 0), weight / update, 1.0)
        torch._foreach_addcmul_(params, updates, list(ratio.unbind()), value=-group["lr"])

    def _adam(
        self, group: dict, targets: Tensors, params: Tensors, clip: Tensor | None, lr: float
    ) -> None:
        """targets -= lr x Adam's bias-corrected direction for `params`' gradients over `clip`."""
        for p in params:
            if not self.state[p]:
                self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        # the kernel follows memory; gradients that autograd did not make may be laid out otherwise
        grads = [
            p.grad if p.grad.stride() == p.stride() else torch.empty_like(p).copy_(p.grad)
            for p in params
        ]
        beta1, beta2 = group["betas"]
        eps = group["eps"]
        step = group["step"]
        if targets[0].device.type in FUSED:
            # filled on the device, not copied to it
            count = torch.full((), float(step), device=targets[0].device)
            rule = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": 0.0}
            rule |= {"amsgrad": False, "maximize": False, "grad_scale": clip}
            steps = [count] * len(targets)
            torch._fused_adamw_(targets, grads, means, squares, [], steps, **rule)
            return
        if clip is not None:
            grads = torch._foreach_div(grads, clip)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, math.sqrt(1 - beta2**step))
        torch._foreach_add_(below, eps)
        torch._foreach_addcdiv_(targets, means, below, value=-lr / (1 - beta1**step))


def _square(tensor: Tensor) -> float:
    """Squared norm of a CPU tensor: one pass, and more accurate than torch's norm."""
    flat = tensor.reshape(-1)
    return torch.dot(flat, flat).item()
