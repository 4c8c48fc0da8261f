"""Mixup and cutmix: one draw per lane and step (DeiT-III; timm 0.3.2 mixup.py, mode "batch").

An image is paired with its mirror position in the lane, x with x.flip(0).
"""

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from deit_tract.recipe.settings.recipe import Mix


class Draw(NamedTuple):
    """How a lane is mixed."""

    keep: float = 1.0  # the own image's share
    box: tuple[int, int, int, int] | None = None  # cutmix pastes top, bottom, left, right


def draw(mix: Mix, height: int, width: int, seed: int) -> Draw:
    """Draw nothing, mixup with keep ~ Beta(mixup, mixup), or cutmix of an area ~ 1 - keep."""
    generator = np.random.default_rng(seed)
    if not (mix.mixup or mix.cutmix) or generator.random() >= mix.prob:
        return Draw()
    cut = bool(mix.cutmix) and (not mix.mixup or generator.random() < mix.switch_prob)
    alpha = mix.cutmix if cut else mix.mixup
    keep = float(generator.beta(alpha, alpha))
    return Draw(keep) if not cut else _box(keep, height, width, generator)


def _box(keep: float, height: int, width: int, generator: np.random.Generator) -> Draw:
    """Draw a box of the image's aspect around a uniform centre, cut off at the border.

    `keep` becomes what is left of the own image.
    """
    side = np.sqrt(1.0 - keep)
    half_height = int(height * side) // 2
    half_width = int(width * side) // 2
    row = generator.integers(height)
    column = generator.integers(width)
    top, bottom = np.clip((row - half_height, row + half_height), 0, height).tolist()
    left, right = np.clip((column - half_width, column + half_width), 0, width).tolist()
    keep = 1.0 - (bottom - top) * (right - left) / (height * width)
    return Draw(keep, (top, bottom, left, right))


def apply(draw: Draw, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return mixed images (b, c, h, w) and soft targets (b, classes) that sum to 1."""
    targets = F.one_hot(labels, classes).to(images.dtype)
    if draw.keep == 1.0:
        return images, targets
    if draw.box is None:
        images = images * draw.keep + images.flip(0) * (1.0 - draw.keep)
    else:
        top, bottom, left, right = draw.box
        pasted = images.flip(0)[..., top:bottom, left:right]
        images = images.clone()
        images[..., top:bottom, left:right] = pasted
    return images, targets * draw.keep + targets.flip(0) * (1.0 - draw.keep)
