"""Small images held on the device as one uint8 tensor, cropped and flipped a batch at a time.

The pixels are those of the ordinary path to the bit: each view's crop and flip come from the same draws of the same
seed (`augment.train_transform`), which cost microseconds on the CPU where decoding and cropping an image cost hundreds.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from deit_tract.common.errors import UserError
from deit_tract.data.loader import Views, checked, loader
from deit_tract.data.stream import View
from deit_tract.recipe.settings.recipe import Augment, Recipe


def batches(
    images: Dataset,
    transform: Callable,
    replace: bool,
    keys: Iterable,
    workers: int,
    device: torch.device,
    collate: Callable = default_collate,
) -> Iterable:
    """Batches [images (b, c, h, w), labels (b,)] for lists of views: on the device if the images are, else on the CPU.

    For `stream.checked`; `replace` as of `stream.Views`, `collate` as of `stream.loader`.
    """
    if isinstance(images, Resident):
        return images.batches(keys, workers, device)
    return loader(Views(images, transform, replace), keys, workers, device.type == "cuda", collate)


class Resident(Dataset):
    """A data set's images as one tensor, with the border that `augment.crop_padding` adds; None adds and draws nothing.

    Decodes all images when it is made. Raises UserError where they are not of the recipe's size.
    """

    def __init__(self, images: Dataset, recipe: Recipe, augment: Augment | None = None):
        data, self.size = recipe.data, recipe.data.image_size
        self.padding, self.flip = (augment.crop_padding, augment.flip) if augment else (0, 0.0)
        pixels, self.labels = _decode(images, self.size, data.workers)
        border = [(0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0)]
        mode = "reflect" if augment and augment.crop_fill == "reflect" else "constant"
        self.pixels = torch.from_numpy(np.pad(pixels, border, mode))  # (n, height, width, channels)
        # tensors: a GPU multiplies by the rounded inverse of a Python number, which is another result
        self.scale = [
            torch.tensor(values).view(-1, 1, 1) for values in ([255.0], data.mean, data.std)
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, keys: Iterable[list[View]], workers: int, device: torch.device
    ) -> Iterator[list[Tensor]]:
        """For each list of views its batch, on the device."""
        self.pixels, self.labels, *self.scale = (
            t.to(device) for t in (self.pixels, self.labels, *self.scale)
        )
        draws = DataLoader(
            Draws(self.padding, self.flip),
            batch_sampler=keys,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            collate_fn=_as_it_is,
            prefetch_factor=4 if workers else None,
        )
        return (self.take(rows.to(device, non_blocking=True)) for rows in draws)

    def take(self, rows: Tensor) -> list[Tensor]:
        """The batch of rows (sample, top, left, flipped), normalised."""
        index, top, left, flipped = rows.unsqueeze(-1).unbind(1)  # (b, 1) each
        line = torch.arange(self.size, device=rows.device)
        across = left + torch.where(flipped.bool(), line.flip(0), line)
        pixels = self.pixels[
            index.unsqueeze(-1), (top + line).unsqueeze(-1), across.unsqueeze(1)
        ]  # (b, h, w, c)
        whole, mean, std = self.scale
        images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(whole)
        return [images.sub_(mean).div_(std), self.labels[index.squeeze(-1)]]


class Draws(Dataset):
    """Views as rows (sample, top, left, flipped), drawn as torchvision's RandomCrop and RandomHorizontalFlip do."""

    def __init__(self, padding: int, flip: float):
        self.padding, self.flip, self.generator = padding, flip, torch.Generator()

    def __getitems__(self, views: list[View]) -> Tensor:
        return torch.tensor([self.draw(*view) for view in views])

    def draw(self, index: int, seed: int) -> tuple[int, int, int, bool]:
        top = left = flipped = 0
        if self.padding or self.flip:
            self.generator.manual_seed(seed)
        if self.padding:
            top, left = (
                int(torch.randint(0, 2 * self.padding + 1, (), generator=self.generator))
                for _ in "hw"
            )
        if self.flip:
            flipped = bool(torch.rand(1, generator=self.generator) < self.flip)
        return index, top, left, flipped


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


class _Pixels(Dataset):
    """Images as arrays (height, width, channels) of one size."""

    def __init__(self, images: Dataset, size: int):
        self.images, self.size = images, size

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | UserError:
        try:
            image, label = self.images[index]
        except UserError as error:
            return error
        if image.size != (self.size, self.size):
            what = f"image {index} has {image.width} x {image.height} px, data.image_size is {self.size}"
            return UserError("data.resident", what, "set data.resident=false")
        return np.array(image).reshape(self.size, self.size, -1), label


def _decode(images: Dataset, size: int, workers: int) -> tuple[np.ndarray, Tensor]:
    """All pixels (n, size, size, channels) and labels (n,)."""
    keys = [range(first, min(first + 500, len(images))) for first in range(0, len(images), 500)]
    parts = list(checked(loader(_Pixels(images, size), keys, workers, False)))
    return torch.cat([pixels for pixels, _ in parts]).numpy(), torch.cat(
        [labels for _, labels in parts]
    )
