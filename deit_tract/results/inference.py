"""Any number of images through a trained model, batch by batch, as an evaluation would see them.

tools/predict.py and tools/features.py use it. An image that cannot be read is reported and left
out. One batch is held at a time, and those that workers have ready.
"""

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from deit_tract.common.errors import UserError
from deit_tract.common.text import on_one_line
from deit_tract.data.feed import PlainFeed, Source
from deit_tract.data.loader import Batch, Loaded, Views, checked, loader, stacked, unstacked
from deit_tract.data.sets.images import Files
from deit_tract.data.stream import Once, in_turn
from deit_tract.models.precision import evaluating, resolve_precision
from deit_tract.recipe.settings.recipe import Data, Evaluate
from deit_tract.results.trained import Choice, Trained
from deit_tract.train.evaluate import start_processes

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Computing(Choice):
    """Options of which model computes and how; None leaves it to the model."""

    source: str
    precision: str | None = None
    batch_size: int | None = None
    workers: int | None = None


# ---- the images ----------------------------------------------------------------------------------


def find_images(given: Sequence[str], channels: int = 3) -> Files:
    """Find the images that files, folders and patterns (`'photos/**/*.jpg'`) name, each once.

    A folder stands for all images below it. Raises UserError if nothing is there.
    """
    found: dict[str, None] = {}
    for name in given:
        found |= dict.fromkeys(_images_of(name))
    labels = np.zeros(len(found), np.int32)
    return Files("", found, labels, [], "RGB" if channels == 3 else "L")


def _images_of(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir():
        inside = (str(file) for file in sorted(path.rglob("*")) if not file.is_dir())
        images = [file for file in inside if file.lower().endswith(IMG_EXTENSIONS)]
        if not images:
            raise UserError(name, "holds no image", f"read are {' '.join(IMG_EXTENSIONS)}")
        return images
    if path.exists():
        return [name]
    matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    if not matches:
        raise UserError(name, "no such file or folder", "give images, folders or patterns")
    return [image for match in matches for image in _images_of(match)]


class Numbered(Dataset):
    """Images whose label is their position, which tells what a batch is of."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index][0], index


# ---- batches of those that can be read -----------------------------------------------------------


class Skipped:
    """Counts and reports the images that cannot be read."""

    count = 0

    def add(self, errors: Iterable[str]) -> None:
        for error in errors:
            self.count += 1
            tqdm.write(on_one_line(f"warning: {error}; skipped"), file=sys.stderr)


@dataclass
class ReadableFeed(PlainFeed):
    """Leaves out what cannot be read; `replaced` is a Skipped."""

    def batches(self, steps: Sequence[int]) -> Iterator[Batch]:
        collate = partial(_readable, stacked if self.stacked else unstacked)
        keys = in_turn(self.order, steps, self.lanes)
        pin_memory = self.device.type == "cuda"
        loaded = loader(self.views, keys, self.workers, pin_memory, collate)
        for batch in checked(loaded, self.replaced):
            if batch is not None:
                yield self._on_device([batch])


def _readable(collate: Callable[[list[Loaded]], Loaded], samples: list[Loaded]) -> Loaded:
    good = [sample for sample in samples if sample.error is None]
    errors = [sample.error.args[:2] for sample in samples if sample.error is not None]
    data = collate(good).data if good else None
    return Loaded(data, replaced=[f"{where}: {what}" for where, what in errors])


# ---- through the model ---------------------------------------------------------------------------


def compute(
    model: Trained,
    source: Source,
    request: Computing,
    function: Callable[[nn.Module, Batch], Found],
    skipped: Skipped,
) -> Iterator[Found]:
    """Yield what `function` makes of each batch of the source's images, in their order.

    It is called as an evaluator's `measure` in an evaluation: the same device, mixed precision and
    batch size, so that it gets the same logits to the last bit.
    """
    precision = precision_of(model, request.precision)
    device = start_processes(precision or "float32").device
    net = model.net.to(device)
    count = len(source.images)
    order = Once(count, 1, batch_size_of(model, request.batch_size))
    workers = workers_of(model, request.workers)
    if count <= order.lane_size and request.workers is None:
        workers = 0  # starting them takes longer
    views = Views(source.images, source.transform)
    feed = ReadableFeed(views, order, [0], workers, device, source.stacked, skipped)
    bar = tqdm(total=count, unit=" images", unit_scale=True, disable=None)
    with bar, evaluating(net, precision, device) as forward_pass:
        for batch in feed.batches(range(order.steps(0))):
            with forward_pass():
                found = function(net, batch)
            bar.update(len(batch["image"]))
            yield found


def precision_of(model: Trained, asked: str | None) -> str | None:
    """Return what is asked for, else the recipe's; None is float32."""
    if asked is not None:
        return None if asked == "float32" else asked
    return resolve_precision(model.recipe).precision.autocast if model.recipe else None


def batch_size_of(model: Trained, asked: int | None) -> int:
    own = model.recipe.evaluate if model.recipe else Evaluate()
    return asked or own.batch_size


def workers_of(model: Trained, asked: int | None) -> int:
    if asked is not None:
        return asked
    if model.recipe is not None:
        return model.recipe.data.workers
    return min(Data.model_fields["workers"].default, os.cpu_count() or 1)
