"""Training and evaluation transforms: PIL image to normalised float tensor (c, height, width).

Every draw comes from `random`, numpy or torch's CPU generator, which are seeded for each view. A
class with a name of torchvision's draws and gives what torchvision does, to the last bit, in less
time.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from deit_tract.common.device import send
from deit_tract.data.transforms import colour, erase
from deit_tract.data.transforms.auto_augment import auto_augment
from deit_tract.recipe.settings.recipe import Data, Recipe

_INTERPOLATION = {name: v2.InterpolationMode(name) for name in ("bicubic", "bilinear")}


class RandomResizedCrop(v2.RandomResizedCrop):
    def forward(self, image: Image.Image) -> Image.Image:
        crop = self.make_params([image])
        left, top = crop["left"], crop["top"]
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
        height, width = self.size
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling[self.interpolation.name])


class RandomHorizontalFlip(v2.RandomHorizontalFlip):
    def forward(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) >= self.p:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class RandomGrayscale(v2.RandomGrayscale):
    def transform(self, image: Image.Image, params: dict) -> Image.Image:
        return image.convert("L").convert(image.mode)  # keeps the number of channels


class ColorJitter(v2.ColorJitter):
    """Brightness and contrast by a table of PIL's 256 results; the hue stays."""

    def forward(self, image: Image.Image) -> Image.Image:
        params = self.make_params([])
        for operation in params["fn_idx"].tolist():
            if operation == 0:
                image = _scaled(image, 0, params["brightness_factor"])
            elif operation == 1:
                grey = np.array(image.convert("L").histogram())
                pixels = image.width * image.height
                mean = (2 * int(grey @ np.arange(256)) + pixels) // (2 * pixels)  # rounded half up
                image = _scaled(image, mean, params["contrast_factor"])
            elif operation == 2:
                image = ImageEnhance.Color(image).enhance(params["saturation_factor"])
        return image


def _scaled(image: Image.Image, centre: int, factor: float) -> Image.Image:
    """Compute centre + factor * (value - centre) as PIL blends: in float32, truncated to 8 bits."""
    values = np.arange(256, dtype=np.float32) - np.float32(centre)
    table = np.clip(values * np.float32(factor) + np.float32(centre), 0, 255).astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))


def pixels_of(image: Image.Image) -> torch.Tensor:
    """Return an image's values as uint8 (h, w, c)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(2) if pixels.ndim == 2 else pixels


class Normalize:
    """A PIL image to float32 (c, h, w): torchvision's ToTensor and Normalize in one."""

    def __init__(self, mean: list[float], std: list[float]):
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = pixels_of(image).permute(2, 0, 1).contiguous()
        return colour.normalize(pixels, self.mean, self.std)


class GaussianBlur:
    """PIL's blur with a radius drawn from [low, high] pixels (DeiT augment.py GaussianBlur)."""

    def __init__(self, low: float = 0.1, high: float = 2.0):
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def three_augment() -> Callable:
    """DeiT-III's 3-Augment: one of greyscale, solarize at 128 and blur, equally likely."""
    return v2.RandomChoice([RandomGrayscale(p=1.0), v2.RandomSolarize(128, p=1.0), GaussianBlur()])


def rand_augment(policy: str, data: Data) -> Callable:
    """timm's RandAugment as its create_transform sets it up, with posterize as before Pillow 13."""
    fill = tuple(min(255, round(255 * channel)) for channel in data.mean)
    settings = {"translate_const": int(data.image_size * 0.45), "img_mean": fill}
    transform = rand_augment_transform(policy, settings | {"interpolation": Image.BICUBIC})
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """Keep `bits` bits of each value; 0 of them is black, which Pillow 13 refuses to draw."""
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


class RandomErase:
    """Erase a box of a normalised image (c, h, w), in place (erase.py)."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        box = erase.draw(self.probability, *image.shape[1:])
        return erase.apply(image.unsqueeze(0), torch.tensor([box])).squeeze(0)


def train_transform(recipe: Recipe) -> Callable[[Image.Image], torch.Tensor]:
    """Return crop, flip, rotation, warp, 3-Augment, jitter, tensor, normalise, erase: DeiT's order.

    For one image, as torchvision has it; training uses the same in two parts, `TrainTransform`.
    """
    steps = [*geometry(recipe), *colours(recipe), Normalize(recipe.data.mean, recipe.data.std)]
    if recipe.augment.random_erase:
        steps.append(RandomErase(recipe.augment.random_erase))
    return v2.Compose(steps)


class TrainTransform:
    """`train_transform` in two parts: PIL image to uint8 (h, w, c), and `finish` for a batch.

    The values are the same, but only a quarter of the bytes goes from process to process and to the
    device. With random erasing it makes {"image": uint8 (h, w, c), "erase_boxes": (5,)}.
    """

    def __init__(self, recipe: Recipe):
        self.geometry, self.colours = geometry(recipe), colours(recipe)
        self.normalize = Normalize(recipe.data.mean, recipe.data.std)
        self.erase = recipe.augment.random_erase

    def __call__(self, image: Image.Image) -> torch.Tensor | dict[str, torch.Tensor]:
        for step in self.geometry + self.colours:
            image = step(image)
        return self.sample(pixels_of(image))

    def sample(
        self, pixels: torch.Tensor, draws: torch.Tensor | None = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return pixels (h, w, c) with what `finish` needs besides, if anything."""
        sample = {"image": pixels}
        if draws is not None:
            sample["draws"] = draws
        if self.erase:
            sample["erase_boxes"] = torch.tensor(erase.draw(self.erase, *pixels.shape[:2]))
        return sample if len(sample) > 1 else pixels

    def finish(
        self,
        images: torch.Tensor,
        draws: torch.Tensor | None = None,
        erase_boxes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Turn uint8 (b, h, w, c) into normalised float32 (b, c, h, w).

        Draws (b, 8) of colours come before, erase_boxes (b, 5) after it; both stay on the CPU.
        """
        images = images.permute(0, 3, 1, 2).contiguous()
        if draws is not None:
            images = colour.apply(images, draws)
        constants = (self.normalize.mean, self.normalize.std)
        images = colour.normalize(images, *(send(each, images.device) for each in constants))
        return images if erase_boxes is None else erase.apply(images, erase_boxes)


def geometry(recipe: Recipe) -> list[Callable]:
    """Return the steps up to the model's image size; RandAugment is among them, as it warps too."""
    augment, data = recipe.augment, recipe.data
    size = (data.image_size, data.image_size)
    interpolation = _INTERPOLATION[augment.interpolation]
    steps: list[Callable] = [v2.Resize(size, interpolation)]
    if augment.crop_padding:
        resize = v2.Resize(size[0], interpolation)  # of the shorter side
        mode = {"reflect": "reflect", "zero": "constant"}[augment.crop_fill]
        steps = [resize, v2.RandomCrop(size, augment.crop_padding, padding_mode=mode)]
    if augment.crop_scale:
        steps = [RandomResizedCrop(size, augment.crop_scale, augment.crop_ratio, interpolation)]
    if augment.flip:
        steps.append(RandomHorizontalFlip(augment.flip))
    if augment.rotate:
        steps.append(v2.RandomRotation(augment.rotate))  # nearest pixel, black border
    if augment.affine:
        warp = augment.affine
        shifts = (warp.translate, warp.translate)
        # PIL warps with bilinear or bicubic alike; the border is black
        steps.append(v2.RandomAffine(warp.degrees, shifts, warp.scale, interpolation=interpolation))
    if augment.auto_augment:
        steps.append(auto_augment)
    if augment.rand_augment:
        steps.append(rand_augment(augment.rand_augment, data))
    return steps


def colours(recipe: Recipe) -> list[Callable]:
    """Return the steps that leave every pixel in its place."""
    steps = [three_augment()] if recipe.augment.three_augment else []
    if recipe.augment.color_jitter:
        steps.append(ColorJitter(*(recipe.augment.color_jitter,) * 3))
    return steps


def eval_transform(recipe: Recipe) -> Callable[[Image.Image], torch.Tensor]:
    """Resize the shorter side to size / crop, take the centre, tensor, normalise.

    A fraction of a pixel is cut off, as in DeiT's datasets.py build_transform and in timm.
    """
    size = recipe.data.image_size
    interpolation = _INTERPOLATION[recipe.augment.interpolation]
    resize = v2.Resize(int(size / recipe.evaluate.crop), interpolation)
    normalize = Normalize(recipe.data.mean, recipe.data.std)
    return v2.Compose([resize, v2.CenterCrop(size), normalize])
