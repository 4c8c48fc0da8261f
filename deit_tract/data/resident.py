"""Small images held on the device as one uint8 tensor, and what is done to a batch of them there.

The pixels are those of plain loading, bit for bit: each view's crop, flip, rotation and erased box
come from the same draws of the same seed (`augment.train_transform`). They take microseconds on the
CPU; decoding and cropping an image takes hundreds.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError
from deit_tract.data.loader import Batch, Loaded, Views, checked, loader, stacked
from deit_tract.data.stream import Order, View, in_turn
from deit_tract.data.transforms import erase
from deit_tract.data.transforms.colour import normalize
from deit_tract.recipe.settings.recipe import Augment, Recipe


class Resident:
    """A data set's images as one tensor, with the border that `augment.crop_padding` adds.

    Without `augment` nothing is added and drawn. Decodes all images when it is made. Raises
    UserError if their size is not the recipe's.
    """

    def __init__(self, images: Dataset, recipe: Recipe, augment: Augment | None = None):
        data = recipe.data
        self.size = data.image_size
        self.augment = augment or Augment()
        pixels, self.labels = _decode(images, self.size, data.workers)
        padding = (self.augment.crop_padding,) * 2
        border = [(0, 0), padding, padding, (0, 0)]
        mode = "reflect" if self.augment.crop_fill == "reflect" else "constant"
        self.pixels = torch.from_numpy(np.pad(pixels, border, mode))  # (n, height, width, channels)
        self.scale = [torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std)]

    def __len__(self) -> int:
        return len(self.labels)

    def move(self, device: torch.device) -> None:
        self.pixels = self.pixels.to(device)
        self.labels = self.labels.to(device)
        self.scale = [constant.to(device) for constant in self.scale]

    def take(
        self, rows: Tensor, turns: Tensor | None = None, erase_boxes: Tensor | None = None
    ) -> Batch:
        """The batch of rows (sample, top, left, flipped), normalised.

        It is rotated by turns (b, 6) as of `turn`; erase_boxes (b, 5) are on a CPU.
        """
        index, top, left, flipped = rows.view(len(rows), -1, 1, 1).unbind(1)  # (b, 1, 1) each
        line = torch.arange(self.size, device=rows.device)
        down = line.view(1, -1, 1)
        across = line.view(1, 1, -1)
        if turns is not None:
            down, across, inside = _turned(turns, down, across, self.size)
        across = torch.where(flipped.bool(), self.size - 1 - across, across)
        pixels = self.pixels[index, top + down, left + across]  # (b, h, w, c)
        if turns is not None:
            pixels *= inside.unsqueeze(-1)
        images = normalize(pixels.permute(0, 3, 1, 2).contiguous(), *self.scale)
        if erase_boxes is not None:
            images = erase.apply(images, erase_boxes)
        return {"image": images, "label": self.labels[rows[:, 0]]}


def turn(angle: float, size: int) -> tuple[int, ...]:
    """Say where the pixels of a square image come from when it is rotated by an angle in degrees.

    From ((a x + b y + c) >> 16, (d x + e y + f) >> 16), with these six numbers: the arithmetic of
    PIL's rotation to the nearest pixel (Image.rotate, Geometry.c affine_fixed).
    """
    radians = -math.radians(angle % 360.0)
    cosine = round(math.cos(radians), 15)
    sine = round(math.sin(radians), 15)
    centre = size / 2
    numbers = []
    for x, y in ((cosine, sine), (-sine, cosine)):
        start = x * -centre + y * -centre + 0.0 + centre
        numbers += [x, y, start + x * 0.5 + y * 0.5]
    return tuple(math.floor(number * 65536.0 + 0.5) for number in numbers)


def _turned(
    turns: Tensor, down: Tensor, across: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns (b, h, w) that turns (b, 6) take pixels from, and which are in the image."""
    a, b, c, d, e, f = turns.view(len(turns), -1, 1, 1).unbind(1)
    column = (a * across + b * down + c) >> 16
    row = (d * across + e * down + f) >> 16
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    return row.clamp(0, size - 1), column.clamp(0, size - 1), inside


@dataclass
class ResidentFeed:
    """Workers draw numbers; the batches are made on the device."""

    images: Resident
    order: Order
    lanes: Sequence[int]
    workers: int
    device: torch.device

    def batches(self, steps: Sequence[int]) -> Iterator[Batch]:
        self.images.move(self.device)
        draws = Draws(self.images.augment, self.images.size)
        keys = in_turn(self.order, steps, self.lanes)
        pin_memory = self.device.type == "cuda"
        for batch in checked(loader(draws, keys, self.workers, pin_memory, _as_it_is)):
            boxes = batch.pop("erase_boxes", None)
            sent = {name: each.to(self.device, non_blocking=True) for name, each in batch.items()}
            yield self.images.take(**sent, erase_boxes=boxes)


class Draws(Dataset):
    """What `Resident.take` is given for some views, drawn as plain loading draws it."""

    def __init__(self, augment: Augment, size: int):
        self.augment = augment
        self.size = size
        self.generator = torch.Generator()

    def __getitems__(self, views: list[View]) -> Loaded:
        drawn = [self.draw(view.seed) for view in views]
        rows = [(view.index, *place) for view, (place, _) in zip(views, drawn, strict=True)]
        batch = {"rows": torch.tensor(rows)}
        if self.augment.rotate:
            batch["turns"] = torch.tensor([turn(angle, self.size) for _, angle in drawn])
        if self.augment.random_erase:
            batch["erase_boxes"] = torch.tensor([self._box(view.seed) for view in views])
        return Loaded(batch)

    def draw(self, seed: int) -> tuple[tuple[int, int, bool], float]:
        """(top, left, flipped) and an angle."""
        augment, generator = self.augment, self.generator
        top = left = 0
        flipped = False
        angle = 0.0
        if augment.crop_padding or augment.flip or augment.rotate:
            generator.manual_seed(seed)
        if augment.crop_padding:
            top = self._place()
            left = self._place()
        if augment.flip:
            flipped = bool(torch.rand(1, generator=generator) < augment.flip)
        if augment.rotate:
            limit = augment.rotate
            angle = torch.empty(1).uniform_(-limit, limit, generator=generator).item()
        return (top, left, flipped), angle

    def _box(self, seed: int) -> erase.Box:
        return erase.draw(self.augment.random_erase, self.size, self.size, random.Random(seed))

    def _place(self) -> int:
        places = 2 * self.augment.crop_padding + 1
        return int(torch.randint(0, places, (), generator=self.generator))


def _as_it_is(batch: Loaded) -> Loaded:
    return batch


class _Arrays(Dataset):
    """Images as arrays (height, width, channels). Indexing raises UserError for another size."""

    def __init__(self, images: Dataset, size: int):
        self.images = images
        self.size = size

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, label = self.images[index]
        if image.size != (self.size, self.size):
            found = f"image {index} has {image.width} x {image.height} px"
            what = f"{found}, data.image_size is {self.size}"
            raise UserError("data.resident", what, "set data.resident=false")
        return np.array(image).reshape(self.size, self.size, -1), label


def _decode(images: Dataset, size: int, workers: int) -> tuple[np.ndarray, Tensor]:
    """All pixels (n, size, size, channels) and labels (n,)."""
    count = len(images)
    keys = [
        [View(index, 0) for index in range(first, min(first + 500, count))]
        for first in range(0, count, 500)
    ]
    views = Views(_Arrays(images, size), torch.from_numpy)
    parts = list(checked(loader(views, keys, workers, False, stacked)))
    pixels = torch.cat([part["image"] for part in parts]).numpy()
    return pixels, torch.cat([part["label"] for part in parts])
