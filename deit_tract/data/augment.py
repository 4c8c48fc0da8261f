"""Training and evaluation transforms: PIL image to normalised float tensor (channels, height, width).

Every draw comes from `random`, numpy or torch's CPU generator, which the stream seeds for each view.
"""

import random
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import ToTensor, v2

from deit_tract.schema import Data, Recipe

_INTERPOLATION = {"bicubic": v2.InterpolationMode.BICUBIC, "bilinear": v2.InterpolationMode.BILINEAR}


class GaussianBlur:
    """PIL's blur with a radius drawn from [low, high] pixels (DeiT augment.py GaussianBlur)."""

    def __init__(self, low: float = 0.1, high: float = 2.0):
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def three_augment() -> Callable:
    """DeiT-III's 3-Augment: exactly one of greyscale, solarize at 128 and blur, each with probability 1/3."""
    grey = v2.RandomGrayscale(p=1.0)  # keeps the number of channels
    return v2.RandomChoice([grey, v2.RandomSolarize(128, p=1.0), GaussianBlur()])


def rand_augment(policy: str, data: Data) -> Callable:
    """timm's RandAugment as its create_transform sets it up, with posterize as Pillow had it before version 13."""
    fill = tuple(min(255, round(255 * channel)) for channel in data.mean)
    settings = {"translate_const": int(data.image_size * 0.45), "img_mean": fill, "interpolation": Image.BICUBIC}
    transform = rand_augment_transform(policy, settings)
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """Keep so many bits of each value. About one image in a thousand asks for 0: black, which Pillow 13 refuses."""
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


def train_transform(recipe: Recipe) -> Callable[[Image.Image], torch.Tensor]:
    """Crop, flip, warp, 3-Augment, colour jitter, tensor, normalise: DeiT-III's order with what the recipe has."""
    augment, size = recipe.augment, (recipe.data.image_size, recipe.data.image_size)
    interpolation = _INTERPOLATION[augment.interpolation]
    steps: list[Callable] = [v2.Resize(size, interpolation)]
    if augment.crop_padding:
        resize = v2.Resize(size[0], interpolation)  # of the shorter side
        mode = {"reflect": "reflect", "zero": "constant"}[augment.crop_fill]
        steps = [resize, v2.RandomCrop(size, augment.crop_padding, padding_mode=mode)]
    if augment.crop_scale:
        steps = [v2.RandomResizedCrop(size, augment.crop_scale, augment.crop_ratio, interpolation)]
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.affine:
        warp = augment.affine
        # PIL warps with bilinear or bicubic alike; the border is black
        steps.append(v2.RandomAffine(warp.degrees, (warp.translate,) * 2, warp.scale, interpolation=interpolation))
    if augment.auto_augment:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(augment.auto_augment), fill=[128] * recipe.data.channels))
    if augment.rand_augment:
        steps.append(rand_augment(augment.rand_augment, recipe.data))
    if augment.three_augment:
        steps.append(three_augment())
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3))
    return v2.Compose(steps + _to_tensor(recipe.data))


def eval_transform(recipe: Recipe) -> Callable[[Image.Image], torch.Tensor]:
    """Resize the shorter side to size / crop, take the centre, tensor, normalise."""
    size = recipe.data.image_size
    resize = v2.Resize(round(size / recipe.evaluate.crop), _INTERPOLATION[recipe.augment.interpolation])
    return v2.Compose([resize, v2.CenterCrop(size), *_to_tensor(recipe.data)])


def _to_tensor(data: Data) -> list[Callable]:
    # the first version of ToTensor divides by 255, as the reference; the second multiplies by the rounded 1/255
    return [ToTensor(), v2.Normalize(data.mean, data.std)]
