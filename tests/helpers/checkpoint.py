"""Shared by the tests of checkpoint."""

import torch

from deit_tract.train import checkpoint


def save(folder, step, keep=2, value=None):
    value = float(step) if value is None else value
    weights = {"model": {"w": torch.full((64, 64), value)}, "ema": {"w": torch.full((2,), value)}}
    return checkpoint.save(
        folder, step, weights, {"optimizer": {"state": {0: torch.ones(3)}}}, {"best": None}, keep
    )
