"""The fast pipeline: the draws are those of the exact one; resizes differ in their rounding.

JPEGs are decoded by simplejpeg, cropped, resized and flipped as uint8 tensors in the worker. With a
CUDA device uint8 images go there, and 3-Augment, colour jitter and normalisation follow on batches
(colour.py); without one PIL does them in the worker, which on a CPU is faster. RandAugment and
affine warps are PIL's, in the worker.
"""

import random
from collections.abc import Callable

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from deit_tract.data.sets.decode import Decoded
from deit_tract.data.transforms import augment, colour
from deit_tract.recipe.settings.recipe import Recipe

ON_TENSORS = (v2.Resize, v2.RandomResizedCrop, v2.RandomCrop, v2.RandomHorizontalFlip)
JITTER = {  # torchvision's name of a factor -> its column
    "brightness_factor": colour.BRIGHTNESS,
    "contrast_factor": colour.CONTRAST,
    "saturation_factor": colour.SATURATION,
}
TALL_FIRST = int(PIL.__version__.split(".")[0]) >= 13  # PIL's order of passes, see `resize`


def pipeline(recipe: Recipe, images: Dataset) -> tuple[Dataset, "FastTransform"]:
    """Return the images and the transform in place of a data set and `augment.TrainTransform`."""
    return Decoded(images), FastTransform(recipe, defer=torch.cuda.is_available())


class FastTransform(augment.TrainTransform):
    """A uint8 array (height, width[, 3]) to a uint8 tensor (h, w, c), for `finish` to normalise.

    With `defer` to {"image": uint8 tensor (h, w, c), "draws": row}: `finish` then applies the
    colours, too. Boxes to erase are as in `augment.TrainTransform`.
    """

    def __init__(self, recipe: Recipe, defer: bool):
        super().__init__(recipe)
        self.on_tensors = [step for step in self.geometry if isinstance(step, ON_TENSORS)]
        self.on_pil = self.geometry[len(self.on_tensors) :]
        assert not any(isinstance(step, ON_TENSORS) for step in self.on_pil), "a crop comes late"
        self.defer = defer

    def __call__(self, array: np.ndarray) -> Tensor | dict[str, Tensor]:
        pixels = torch.from_numpy(array)
        pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        for step in self.on_tensors:
            pixels = _on_tensor(step, pixels)
        pixels = _on_pil(self.on_pil, pixels)
        if self.defer:
            return self.sample(pixels.permute(1, 2, 0).contiguous(), draw(self.colours))
        return self.sample(_on_pil(self.colours, pixels).permute(1, 2, 0).contiguous())


def _on_tensor(step: Callable, pixels: Tensor) -> Tensor:
    """Apply torchvision's step to uint8 (c, h, w), with less around it than torchvision has."""
    if isinstance(step, v2.RandomHorizontalFlip):
        return pixels if torch.rand(1) >= step.p else pixels.flip(-1)
    if isinstance(step, v2.RandomResizedCrop):
        crop = step.make_params([pixels])
        pixels = pixels.narrow(1, crop["top"], crop["height"])
        pixels = pixels.narrow(2, crop["left"], crop["width"])
        return resize(pixels, step.size, step.interpolation)
    if isinstance(step, v2.Resize):
        return resize(pixels, step.size, step.interpolation)
    return step(pixels)


def resize(pixels: Tensor, size: list[int], interpolation: v2.InterpolationMode) -> Tensor:
    """Resize to (height, width), or to a shorter side, with PIL's filters and order of passes.

    Both round to 8 bits after each pass, so that the order shows. PIL began with the rows, and from
    version 13 begins with the columns if the height shrinks by more than twice what the width does.
    """
    height, width = pixels.shape[1:]
    if len(size) == 1:
        short = min(height, width)
        new_height, new_width = (int(size[0] * side / short) for side in (height, width))
    else:
        new_height, new_width = size
    if (new_height, new_width) == (height, width):
        return pixels
    passes = [(new_height, new_width)]
    if TALL_FIRST and height - new_height > max(0, 2 * (width - new_width)):
        passes = [(new_height, width), *passes]
    # contiguous, though it copies: torch reads rows of whole pixels several times faster
    pixels = pixels.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    for goal in passes:
        pixels = F.interpolate(pixels, goal, mode=interpolation.value, antialias=True)
    return pixels.squeeze(0)


def _on_pil(steps: list[Callable], pixels: Tensor) -> Tensor:
    """Apply PIL's steps to a uint8 tensor (c, h, w)."""
    if not steps:
        return pixels
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array if len(pixels) == 3 else array[..., 0])
    for step in steps:
        image = step(image)
    return augment.pixels_of(image).permute(2, 0, 1)


def draw(steps: list[Callable]) -> Tensor:
    """Draw what the steps of `augment.colours` would, in their order: a row for `colour.apply`."""
    row = list(colour.PLAIN)
    for step in steps:
        if isinstance(step, v2.RandomChoice):
            chosen = int(torch.multinomial(torch.tensor(step.p), 1))
            row[colour.KIND] = (colour.GREY, colour.SOLARIZE, colour.BLUR)[chosen]
            blur = step.transforms[chosen]
            if isinstance(blur, augment.GaussianBlur):
                radius = random.uniform(blur.low, blur.high)
                row[colour.CENTRE : colour.FAR + 1] = colour.box_weights(radius)
            else:
                torch.rand(1)  # whether to apply it at all, which is certain, is drawn too
        else:
            jitter = step.make_params([])
            order = [colour.BRIGHTNESS + int(i) for i in jitter["fn_idx"] if i < 3]  # 3 is the hue
            row[colour.ORDER] = colour.ORDERS.index(tuple(order))
            for name, column in JITTER.items():
                row[column] = jitter[name]
    return torch.tensor(row, dtype=torch.float32)
