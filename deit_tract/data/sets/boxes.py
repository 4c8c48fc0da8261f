"""A photo with the objects on it, and how it becomes the detector's input."""

from typing import NamedTuple

from torch import Tensor


class Objects(NamedTuple):
    """What is on an image."""

    boxes: Tensor  # (n, 4) float32: x0, y0, x1, y1 in pixels, half-open: x1 - x0 is the width
    labels: Tensor  # (n,) int64, from 1 in the order of the class names
    difficult: Tensor  # (n,) bool


class Photo(NamedTuple):
    """An image with what is on it and where it stands in its split."""

    image: object  # PIL, RGB
    objects: Objects
    index: int
