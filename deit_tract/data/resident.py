"""Small images held on the device as one uint8 tensor, cropped and flipped a batch at a time.

The pixels are those of plain loading, bit for bit: each view's crop and flip come from the same
draws of the same seed (`augment.train_transform`). They take microseconds on the CPU; decoding and
cropping an image takes hundreds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError
from deit_tract.data.loader import Batch, Loaded, Views, checked, loader, stacked
from deit_tract.data.stream import Order, View, in_turn
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
        self.padding = augment.crop_padding if augment else 0
        self.flip = augment.flip if augment else 0.0
        pixels, self.labels = _decode(images, self.size, data.workers)
        border = [(0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0)]
        mode = "reflect" if augment and augment.crop_fill == "reflect" else "constant"
        self.pixels = torch.from_numpy(np.pad(pixels, border, mode))  # (n, height, width, channels)
        self.scale = [torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std)]

    def __len__(self) -> int:
        return len(self.labels)

    def move(self, device: torch.device) -> None:
        self.pixels = self.pixels.to(device)
        self.labels = self.labels.to(device)
        self.scale = [constant.to(device) for constant in self.scale]

    def take(self, rows: Tensor) -> Batch:
        """The batch of rows (sample, top, left, flipped), normalised."""
        index, top, left, flipped = rows.unsqueeze(-1).unbind(1)  # (b, 1) each
        line = torch.arange(self.size, device=rows.device)
        down = (top + line).unsqueeze(-1)
        across = (left + torch.where(flipped.bool(), line.flip(0), line)).unsqueeze(1)
        pixels = self.pixels[index.unsqueeze(-1), down, across]  # (b, h, w, c)
        images = normalize(pixels.permute(0, 3, 1, 2).contiguous(), *self.scale)
        return {"image": images, "label": self.labels[index.squeeze(-1)]}


@dataclass
class ResidentFeed:
    """Workers draw crops and flips; the batches are cut on the device."""

    images: Resident
    order: Order
    lanes: Sequence[int]
    workers: int
    device: torch.device

    def batches(self, steps: Sequence[int]) -> Iterator[Batch]:
        self.images.move(self.device)
        draws = Draws(self.images.padding, self.images.flip)
        keys = in_turn(self.order, steps, self.lanes)
        pin_memory = self.device.type == "cuda"
        for batch in checked(loader(draws, keys, self.workers, pin_memory, _as_it_is)):
            yield self.images.take(batch["rows"].to(self.device, non_blocking=True))


class Draws(Dataset):
    """Views as rows (sample, top, left, flipped), drawn as torchvision's crop and flip draw."""

    def __init__(self, padding: int, flip: float):
        self.padding = padding
        self.flip = flip
        self.generator = torch.Generator()

    def __getitems__(self, views: list[View]) -> Loaded:
        return Loaded({"rows": torch.tensor([self.draw(*view) for view in views])})

    def draw(self, index: int, seed: int) -> tuple[int, int, int, bool]:
        top = left = 0
        flipped = False
        if self.padding or self.flip:
            self.generator.manual_seed(seed)
        if self.padding:
            top = self._place()
            left = self._place()
        if self.flip:
            flipped = bool(torch.rand(1, generator=self.generator) < self.flip)
        return index, top, left, flipped

    def _place(self) -> int:
        return int(torch.randint(0, 2 * self.padding + 1, (), generator=self.generator))


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
