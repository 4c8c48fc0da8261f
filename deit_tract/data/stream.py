"""The stream: which view of which image stands where, as pure functions of (seed, epoch, step, lane, position).

A batch is `lanes` equal lanes, each what one GPU of the published run sees. Nothing here holds random state: a view's
crop and colours, a lane's mixup and drop path are drawn from generators seeded by what they are for, so a run can start
at any step, on any number of processes, with any number of workers, and sees the same pixels.
"""

import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from deit_tract.errors import UserError


class View(NamedTuple):
    """One augmented look at one image."""

    index: int  # of the sample in the data set
    seed: int  # of everything the transform draws


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose and place, e.g. derive(0, "lane", step, lane). The same on every platform."""
    data = purpose.encode() + struct.pack(f"<{1 + len(numbers)}q", seed, *numbers)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int, device: torch.device | None = None) -> None:
    """Seed what a transform or a layer may draw from: `random`, numpy, torch's CPU generator and the device's.

    Not torch.manual_seed, which takes 0.7 ms in a CUDA build.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def lanes_of(rank: int, processes: int, lanes: int) -> range:
    """The lanes that a process computes, one after another: rank, rank + processes, ...

    Raises UserError where a process would have none.
    """
    if processes > lanes:
        what = f"{processes} processes for batch.lanes {lanes}"
        raise UserError("launch", what, f"start at most {lanes}; batch.lanes is part of the experiment")
    return range(rank, lanes, processes)


@dataclass(frozen=True)
class Stream:
    """The order of a training run over `samples` images, dealt to lanes.

    With seed 0 a lane's list of indices is that of the reference's sampler on the GPU of the same number: DeiT's
    RASampler (samples.py; a permutation seeded by the epoch alone, each index `repeats` times in a row, dealt out by
    rank, cut to a multiple of 256 images an epoch), without repeats torch's DistributedSampler.
    """

    samples: int
    lanes: int
    lane_size: int
    repeats: int = 1
    seed: int = 0
    _order: dict[int, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if self.steps_per_epoch == 0:
            what = f"{self.samples} images give a lane {self.views_per_lane} of the {self.lane_size} views of one step"
            raise UserError("batch.size", what, f"use at most {max(self.views_per_lane, 1) * self.lanes}")

    @property
    def views_per_lane(self) -> int:
        """Views that a lane may draw in an epoch, before the incomplete last step is dropped."""
        if self.repeats > 1 and self.samples >= 256:
            return self.samples // 256 * 256 // self.lanes
        return -(-self.samples // self.lanes)

    @property
    def steps_per_epoch(self) -> int:
        return self.views_per_lane // self.lane_size

    def order(self, epoch: int) -> torch.Tensor:
        """The epoch's permutation of the samples; the last one is kept."""
        if epoch not in self._order:
            seed = epoch if self.seed == 0 else derive(self.seed, "order", epoch)
            self._order.clear()
            self._order[epoch] = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        return self._order[epoch]

    def views(self, step: int, lane: int) -> list[View]:
        """The lane's views of a global step, in order."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first = within * self.lane_size
        positions = torch.arange(first, first + self.lane_size) * self.lanes + lane
        # beyond the end the order starts again, as the reference pads it
        indices = self.order(epoch)[positions % (self.samples * self.repeats) // self.repeats]
        seeds = (derive(self.seed, "view", epoch, position) for position in positions.tolist())
        return [View(*pair) for pair in zip(indices.tolist(), seeds, strict=True)]

    def lane_seed(self, step: int, lane: int) -> int:
        """Seed of all that a lane draws once a step: mixup, drop path, dropout."""
        return derive(self.seed, "lane", step, lane)

    def batches(self, steps: Sequence[int], lanes: Sequence[int]) -> Iterator[list[View]]:
        """One process's micro-batches: for each step, for each of its lanes."""
        return (self.views(step, lane) for step in steps for lane in lanes)


class Views(Dataset):
    """Images as transformed tensors, fetched by View; a mistake in the data comes back as a value (see `loader`).

    A sample is (transformed, label), and where the transform returns several things (the first, label, the others).
    """

    def __init__(self, images: Dataset, transform: Callable, replace: bool = False):
        """replace: put another image, which the view's seed picks, in the place of one that cannot be read."""
        self.images, self.transform, self.attempts = images, transform, 100 if replace else 1

    def __getitem__(self, view: View) -> tuple | UserError:
        return self.__getitems__([view])[0]

    def __getitems__(self, views: Sequence[View]) -> list[tuple | UserError]:
        """The samples of a batch in order; an image of which there are several views is read once."""
        places: dict[int, list[int]] = {}
        for place, view in enumerate(views):
            places.setdefault(view.index, []).append(place)
        samples: list = [None] * len(views)
        for index, same in places.items():
            found = self._read(index)
            for place in same:
                samples[place] = self._sample(views[place], found)
        return samples

    def _read(self, index: int) -> tuple | UserError:
        try:
            return self.images[index]
        except UserError as error:
            return error

    def _sample(self, view: View, found: tuple | UserError) -> tuple | UserError:
        errors = Notes()
        while isinstance(found, UserError):
            errors.append(found)
            if len(errors) == self.attempts:
                return errors[0]
            found = self._read(derive(view.seed, "replacement", len(errors) - 1) % len(self.images))
        image, label = found
        seed_generators(view.seed)
        first, *others = _as_tuple(self.transform(image))
        return (first, label, *others, errors) if errors else (first, label, *others)


def _as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


class Notes(list):
    """Mistakes in the data that were passed over, behind a sample or a batch."""


def loader(
    dataset: Dataset, batches, workers: int, pin_memory: bool, collate: Callable = default_collate
) -> DataLoader:
    """A DataLoader over lists of keys, in their order. A batch with a bad image is that image's UserError.

    An exception raised in a worker would reach the user as a traceback inside another one.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=partial(_collate, collate=collate),
        prefetch_factor=4 if workers else None,
    )


def _collate(samples: list, collate: Callable) -> list[torch.Tensor] | UserError:
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    if errors:
        return errors[0]
    notes = Notes(str(note) for sample in samples if isinstance(sample[-1], Notes) for note in sample[-1])
    batch = collate([sample[:-1] if isinstance(sample[-1], Notes) else sample for sample in samples])
    return [*batch, notes] if notes else batch


LOST = (ConnectionError, EOFError)  # what taking a tensor from a process raises that is gone


def worker_died(error: Exception) -> UserError | None:
    """What to say if a loader's process has died; torch raises it wherever the main thread is at that moment."""
    if "DataLoader worker" not in str(error) and not isinstance(error, LOST):
        return None
    what = f"a loader process died ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    return UserError("data.workers", what, "it may have run out of memory: use fewer")


def checked(batches, replaced: "Replaced | None" = None) -> Iterator[list[torch.Tensor]]:
    """The loader's batches, or its UserError raised in the process that asked; replaced images are counted."""
    batches = iter(batches)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, *LOST) as error:
            died = worker_died(error)
            if died is None:
                raise
            raise died from None
        if isinstance(batch, UserError):
            raise batch
        if isinstance(batch[-1], Notes):
            replaced.add(batch.pop())
        yield batch


class Replaced:
    """The unreadable images that were replaced in a run, at most `limit` different ones over all processes."""

    def __init__(self, limit: int, errors: Iterable[str] = ()):
        """errors: those of the run so far."""
        self.limit, self.errors = limit, set(errors)

    def add(self, errors: Iterable[str]) -> None:
        """Say and count what is new. Raises UserError where they become too many."""
        for error in sorted(set(errors) - self.errors):
            self.errors.add(error)
            print(f"warning: {error}; replaced ({len(self.errors)} of at most {self.limit})", file=sys.stderr)
        self.merge(())

    def merge(self, errors: Iterable[str]) -> None:
        """Count those of the other processes too, which said them."""
        self.errors.update(errors)
        if len(self.errors) > self.limit:
            what = f"{len(self.errors)} images cannot be read; the last: {max(self.errors)}"
            raise UserError("data.skip_unreadable", what, "repair the data, or raise the limit")
