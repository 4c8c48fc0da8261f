"""AutoAugment's policy for CIFAR-10, with the operations of ViT-CIFAR (its autoaugment.py).

The policy is Cubuk et al.'s (arXiv:1805.09501), found on a part of CIFAR-10. torchvision has the
same one with other operations: it rotates either way, shears without interpolation, moves by whole
pixels and solarizes from another value on.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

POLICY = (  # one row is drawn; its two steps (operation, level, probability) follow each other
    (("invert", 7, 0.1), ("contrast", 6, 0.2)),
    (("rotate", 2, 0.7), ("translate_x", 9, 0.3)),
    (("sharpness", 1, 0.8), ("sharpness", 3, 0.9)),
    (("shear_y", 8, 0.5), ("translate_y", 9, 0.7)),
    (("autocontrast", 8, 0.5), ("equalize", 2, 0.9)),
    (("shear_y", 7, 0.2), ("posterize", 7, 0.3)),
    (("color", 3, 0.4), ("brightness", 7, 0.6)),
    (("sharpness", 9, 0.3), ("brightness", 9, 0.7)),
    (("equalize", 5, 0.6), ("equalize", 1, 0.5)),
    (("contrast", 7, 0.6), ("sharpness", 5, 0.6)),
    (("color", 7, 0.7), ("translate_x", 8, 0.5)),
    (("equalize", 7, 0.3), ("autocontrast", 8, 0.4)),
    (("translate_y", 3, 0.4), ("sharpness", 6, 0.2)),
    (("brightness", 6, 0.9), ("color", 8, 0.2)),
    (("solarize", 2, 0.5), ("invert", 3, 0.0)),
    (("equalize", 0, 0.2), ("autocontrast", 0, 0.6)),
    (("equalize", 8, 0.2), ("equalize", 4, 0.6)),
    (("color", 9, 0.9), ("equalize", 6, 0.6)),
    (("autocontrast", 4, 0.8), ("solarize", 8, 0.2)),
    (("brightness", 3, 0.1), ("color", 0, 0.7)),
    (("solarize", 5, 0.4), ("autocontrast", 3, 0.9)),
    (("translate_y", 9, 0.9), ("translate_y", 9, 0.7)),
    (("autocontrast", 2, 0.9), ("solarize", 3, 0.8)),
    (("equalize", 8, 0.8), ("invert", 3, 0.1)),
    (("translate_y", 9, 0.7), ("autocontrast", 1, 0.9)),
)


class Operation(NamedTuple):
    """What is done to an image, by a magnitude for each of the levels 0 to 9."""

    apply: Callable[[Image.Image, float], Image.Image]
    magnitudes: Sequence[float]
    signed: bool = False  # the magnitude's sign is drawn


def _warp(image: Image.Image, matrix: Sequence[float], resampling: Image.Resampling) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=_grey(image)
    )


def _grey(image: Image.Image) -> tuple[int, ...]:
    """What fills the border."""
    return (128,) * len(image.getbands())


def shear_x(image: Image.Image, slope: float) -> Image.Image:
    return _warp(image, (1, slope, 0, 0, 1, 0), Image.Resampling.BICUBIC)


def shear_y(image: Image.Image, slope: float) -> Image.Image:
    return _warp(image, (1, 0, 0, slope, 1, 0), Image.Resampling.BICUBIC)


def translate_x(image: Image.Image, share: float) -> Image.Image:
    return _warp(image, (1, 0, share * image.width, 0, 1, 0), Image.Resampling.NEAREST)


def translate_y(image: Image.Image, share: float) -> Image.Image:
    return _warp(image, (1, 0, 0, 0, 1, share * image.height), Image.Resampling.NEAREST)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, fillcolor=_grey(image))  # nearest


def _enhance(kind: type) -> Operation:
    """Blend with what `kind` makes of the image: by 1 - m or 1 + m."""
    return Operation(lambda image, m: kind(image).enhance(1 + m), np.linspace(0, 0.9, 10), True)


def _without_level(function: Callable[[Image.Image], Image.Image]) -> Operation:
    return Operation(lambda image, _: function(image), (0,) * 10)


SLOPES = np.linspace(0, 0.3, 10)
SHARES = np.linspace(0, 150 / 331, 10)
BITS = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
OPERATIONS = {
    "shear_x": Operation(shear_x, SLOPES, signed=True),
    "shear_y": Operation(shear_y, SLOPES, signed=True),
    "translate_x": Operation(translate_x, SHARES, signed=True),
    "translate_y": Operation(translate_y, SHARES, signed=True),
    "rotate": Operation(rotate, np.linspace(0, 30, 10)),  # always counter-clockwise
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "brightness": _enhance(ImageEnhance.Brightness),
    "posterize": Operation(ImageOps.posterize, BITS),
    "solarize": Operation(ImageOps.solarize, np.linspace(256, 0, 10)),
    "autocontrast": _without_level(ImageOps.autocontrast),
    "equalize": _without_level(ImageOps.equalize),
    "invert": _without_level(ImageOps.invert),
}


def apply(image: Image.Image, name: str, level: int) -> Image.Image:
    """Carry out one operation at a level, 0 to 9."""
    operation = OPERATIONS[name]
    magnitude = operation.magnitudes[level]
    if operation.signed:
        magnitude = magnitude * random.choice((-1, 1))
    return operation.apply(image, magnitude)


def auto_augment(image: Image.Image) -> Image.Image:
    """Carry out a row of the policy; draws from `random`, in the order of the reference."""
    for name, level, probability in random.choice(POLICY):
        if random.random() < probability:
            image = apply(image, name, level)
    return image
