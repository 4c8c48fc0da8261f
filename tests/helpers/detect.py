"""Shared by the tests of detect."""

from pathlib import Path

import torch
from safetensors.torch import load_file

RECIPE = "voc2007_frcnn_vgg16_tract"
SMALL = (
    "data.name=synthetic",
    "data.classes=3",
    "detect.class_names=[a, b, c]",
    "model.pretrained=false",
    "model.args.width=8",
    "model.args.fc=64",
    "data.image_size=96",
    "detect.max_size=128",
    "data.workers=0",
    "detect.anchor_sizes=[24, 48]",
    "detect.anchor_ratios=[1]",
    "detect.rpn_min_size=2",
    "detect.score=0.02",
)
ADAM = (
    "optim.name=adamw",
    "optim.lr=1e-3",
    "optim.clip_grad=10.0",
    "optim.bias_lr=1",
    "schedule.milestones=[6]",
)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
