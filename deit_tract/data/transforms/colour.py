"""3-Augment, colour jitter and normalisation of uint8 batches on any device, PIL's to the last bit.

Each image's draws are a row of numbers, so that the process that draws need not be the one that
computes. No operation waits for the device: the host decides which rows an operation applies to.
"""

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from deit_tract.common.device import send

NOTHING, GREY, SOLARIZE, BLUR = range(4)
# The columns of the draws, float32, in which all of these numbers are exact
KIND, CENTRE, NEAR, FAR, BRIGHTNESS, CONTRAST, SATURATION, ORDER = range(8)
ORDERS = list(permutations((BRIGHTNESS, CONTRAST, SATURATION)))
PLAIN = (NOTHING, 1 << 24, 0, 0, 1.0, 1.0, 1.0, 0)  # draws that change nothing
ONE = 1 << 24  # PIL's box blur computes with weights of 24 bits behind the point


def box_weights(radius: float) -> tuple[int, int, int]:
    """Weights of a pixel and of those one and two beside it in one of three passes of PIL's blur.

    PIL's arithmetic (BoxBlur.c) in its precisions, for radii up to 2 px, where a pass reaches no
    further.
    """
    variance = np.float32(radius) * np.float32(radius) / np.float32(3)
    length = np.float32(np.sqrt(12.0 * np.float64(variance) + 1.0))
    whole = np.float32(np.floor((np.float64(length) - 1.0) / 2.0))
    one, two, three, six = (np.float32(n) for n in (1, 2, 3, 6))
    part = (two * whole + one) * (whole * (whole + one) - three * variance)
    part /= six * (variance - (whole + one) * (whole + one))
    box = whole + part
    assert 0 <= box < 2, f"a blur of {radius} px reaches further than two pixels a pass"
    inside = int(np.float32(ONE) / (box * two + one))
    edge = (ONE - (2 * int(box) + 1) * inside) // 2
    return (inside, inside, edge) if box >= 1 else (inside, edge, 0)


# ---- operations: uint8 (b, c, h, w) -> the same, c 1 or 3; factors and weights (b,) ------------


def luma(images: Tensor) -> Tensor:
    """Greyscale as PIL rounds it, int32 (b, 1, h, w)."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, 1)
    return (red * 19595).add_(green * 38470).add_(blue * 7471).add_(1 << 15) >> 16


def grey(images: Tensor) -> Tensor:
    # memory of its own: what follows writes to it
    return luma(images).to(torch.uint8).repeat(1, images.shape[1], 1, 1)


def solarize(images: Tensor) -> Tensor:
    return torch.where(images < 128, images, 255 - images)


def blur(images: Tensor, centre: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Pass a box three times along the rows, then the columns, each time rounded to 8 bits."""
    weights = [weight.int().view(-1, 1, 1, 1) for weight in (centre, near, far)]
    # 0 or -1: PIL's weights may miss the sum by one
    lost = weights[0] + 2 * weights[1] + 2 * weights[2] - ONE
    signed = (images.short() - 128).to(torch.int8)  # so that the products fit 32 bits
    for axis in (3, 2):
        for _ in range(3):
            signed = _box(signed, axis, *weights, (1 << 23) + 128 * lost)
    return (signed.short() + 128).to(torch.uint8)


def _box(
    images: Tensor, axis: int, centre: Tensor, near: Tensor, far: Tensor, rounding: Tensor
) -> Tensor:
    """Make one pass over int8 images, the border's pixels repeated beyond it."""
    size = images.shape[axis]
    first, last = images.narrow(axis, 0, 1), images.narrow(axis, size - 1, 1)
    padded = torch.cat([first, first, images, last, last], axis)
    beside = [padded.narrow(axis, start, size) for start in (1, 3, 0, 4)]
    total = torch.addcmul(rounding, images, centre)
    for pixels, weight in zip(beside, (near, near, far, far), strict=True):
        total.addcmul_(pixels, weight)
    return (total >> 24).to(torch.int8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, 0.0, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    grey = luma(images)
    count = grey[0].numel()
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + count) // (2 * count)  # rounded half up
    return _blend(images, mean.float(), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, luma(images).float(), factor)


def _blend(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """Compute other + factor * (images - other), clamped and truncated to 8 bits."""
    mixed = images.float().sub_(other).mul_(factor.view(-1, 1, 1, 1)).add_(other)
    return mixed.clamp_(0, 255).to(torch.uint8)


JITTER = {BRIGHTNESS: brightness, CONTRAST: contrast, SATURATION: saturation}


# ---- a batch -----------------------------------------------------------------------------------


def apply(images: Tensor, draws: Tensor) -> Tensor:
    """Apply the drawn operations to uint8 images (b, c, h, w), in place; draws (b, 8), on a CPU."""
    draws = draws.cpu()  # a wait for the device, if they are there
    plan = _plan(draws.numpy())
    if not plan:
        return images
    rows = send(torch.from_numpy(np.concatenate([rows for *_, rows in plan])), images.device)
    numbers = send(draws, images.device)
    start = 0
    for operation, columns, own in plan:
        mine = rows[start : start + len(own)]
        start += len(own)
        some = images if len(own) == len(images) else images.index_select(0, mine)
        some = operation(some, *(numbers[:, column].index_select(0, mine) for column in columns))
        images = some if len(own) == len(images) else images.index_copy_(0, mine, some)
    return images


def _plan(draws: np.ndarray) -> list[tuple]:
    """Return (operation, its columns of the draws, its rows) in the order of DeiT's transform."""
    kind = draws[:, KIND].astype(int)
    order = np.array(ORDERS)[draws[:, ORDER].astype(int)]
    plan = [
        (grey, (), kind == GREY),
        (solarize, (), kind == SOLARIZE),
        (blur, (CENTRE, NEAR, FAR), kind == BLUR),
    ]
    for turn in range(3):
        for column, operation in JITTER.items():
            rows = (order[:, turn] == column) & (draws[:, column] != 1)
            plan.append((operation, (column,), rows))
    found = [(operation, columns, np.flatnonzero(rows)) for operation, columns, rows in plan]
    return [step for step in found if len(step[2])]


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn uint8 (..., c, h, w) into float32 as torchvision does; mean, std (c, 1, 1)."""
    # CUDA multiplies by the rounded reciprocal of a number, but divides by a tensor
    return images.float().div_(torch.full_like(mean, 255.0)).sub_(mean).div_(std)
