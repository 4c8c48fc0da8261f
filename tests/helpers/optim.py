"""Shared by the tests of optim."""

import math

import torch


def lamb_float64(weights, grads_per_step, lr, decay, clip, betas=(0.9, 0.999), eps=1e-8):
    """LAMB as in the paper (You et al. 2020, Algorithm 2) with apex's clipping, in float64."""
    state = [
        (w.double(), torch.zeros_like(w).double(), torch.zeros_like(w).double()) for w in weights
    ]
    for t, grads in enumerate(grads_per_step, 1):
        grads = [g.double() for g in grads]
        norm = math.sqrt(sum(g.square().sum().item() for g in grads))
        factor = max(1.0, norm / clip) if clip else 1.0
        for i, ((w, m, v), g) in enumerate(zip(state, grads, strict=True)):
            g = g / factor
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            update = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
            ratio = 1.0
            if decay[i]:
                update = update + decay[i] * w
                if w.norm() > 0 and update.norm() > 0:
                    ratio = (w.norm() / update.norm()).item()
            state[i] = (w - lr * ratio * update, m, v)
    return [w for w, _, _ in state]
