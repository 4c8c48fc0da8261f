"""A photo with the objects on it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Objects(NamedTuple):
    """The objects of an image."""

    boxes: Tensor  # (n, 4) float32: x0, y0, x1, y1 in pixels, half-open: x1 - x0 is the width
    labels: Tensor  # (n,) int64, from 1 in the order of the class names
    difficult: Tensor  # (n,) bool


def no_objects() -> Objects:
    return Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0).bool())


class Photo(NamedTuple):
    """An image with its objects and its position in its split."""

    image: object  # PIL, RGB
    objects: Objects
    index: int
