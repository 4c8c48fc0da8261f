"""Random erasing: a box of a normalised image becomes normal noise (Zhong et al., 1708.04896).

timm's RandomErasing in mode "pixel" with one box, which is DeiT's. The box and a seed are drawn
with the other draws of a view; the noise is a function of seed and pixel, computed where the image
is. Integers and a table make its bits the same on every device.
"""

import math
import random
from functools import lru_cache

import torch
from torch import Tensor

from deit_tract.common.device import send

AREA = (0.02, 1 / 3)  # of the image; timm's limits
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))  # height by width
NO_BOX = (0, 0, 0, 0, 0)
BITS = 16  # of a hash for each channel's value

Box = tuple[int, int, int, int, int]  # top, bottom, left, right, seed of the noise


def draw(
    probability: float, height: int, width: int, generator: random.Random | None = None
) -> Box:
    """Draw a box as timm does, and its seed; without a generator from `random`."""
    generator = generator or random
    if generator.random() > probability:
        return NO_BOX
    for _ in range(10):
        area = generator.uniform(*AREA) * (height * width)
        aspect = math.exp(generator.uniform(*LOG_ASPECT))
        high = round(math.sqrt(area * aspect))
        wide = round(math.sqrt(area / aspect))
        if high < height and wide < width:
            top = generator.randint(0, height - high)
            left = generator.randint(0, width - wide)
            return top, top + high, left, left + wide, generator.getrandbits(63)
    return NO_BOX


def apply(images: Tensor, boxes: Tensor) -> Tensor:
    """Fill the boxes (b, 5), on a CPU, of float32 images (b, c, h, w), c up to 4, in place."""
    boxes = boxes.cpu()  # a wait for the device, if they are there
    top, bottom, left, right, _ = boxes.unbind(1)
    counts = (bottom - top) * (right - left)
    total = int(counts.sum())  # of pixels; known here, so that nothing waits for the device
    if not total:
        return images
    numbers = torch.column_stack([boxes, counts, counts.cumsum(0) - counts])
    numbers = send(numbers, images.device)
    image = torch.repeat_interleave(numbers[:, 5], output_size=total)
    top, _, left, right, seed, _, first = numbers[image].unbind(1)  # (total,) each
    within = torch.arange(total, device=images.device) - first
    row = top + within // (right - left)
    column = left + within % (right - left)
    bits = split_mix(seed, row * images.shape[3] + column)
    values = [(bits >> BITS * channel) & (2**BITS - 1) for channel in range(images.shape[1])]
    noise = quantiles(images.device)[torch.stack(values, 1)]
    images.permute(0, 2, 3, 1)[image, row, column] = noise
    return images


def split_mix(seed: Tensor, place: Tensor) -> Tensor:
    """Return the 64-bit number at a place of the SplitMix64 generator with a seed, all int64."""
    state = seed + (place + 1) * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _signed(number: int) -> int:
    """The number of the same 64 bits that an int64 can hold."""
    return number - 2**64


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros; int64 alone would repeat the sign."""
    return (numbers >> bits) & (2 ** (64 - bits) - 1)


@lru_cache
def quantiles(device: torch.device) -> Tensor:
    """Values of a standard normal number, equally likely: its middle quantiles, float32."""
    share = (torch.arange(2**BITS, dtype=torch.float64) + 0.5) / 2**BITS
    return torch.special.ndtri(share).float().to(device)
