"""From workers to the device: the batches of a process's lanes, asked for in one way.

Three feeds answer: images held on the device (resident.py), lanes that share the reading of their
images, and plain loading. `make_feed` chooses.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deit_tract.data.loader import Batch, Replaced, Views, checked, loader, stacked, unstacked
from deit_tract.data.resident import Resident, ResidentFeed
from deit_tract.data.stream import Order, Stream, View, in_turn


class Source(NamedTuple):
    """Images by index, and how they become samples and batches."""

    images: Dataset
    transform: Callable | None = None  # none for resident images
    stacked: bool = True  # samples have one size; otherwise a batch holds lists


class Feed(Protocol):
    """Makes the batches of one process on its device."""

    def batches(self, steps: Sequence[int]) -> Iterator[Batch]:
        """For each step, for each of the process's lanes, one batch. UserError for bad data."""


def make_feed(
    source: Source,
    order: Order,
    lanes: Sequence[int],
    workers: int,
    device: torch.device,
    replaced: Replaced | None = None,
) -> Feed:
    """The feed for some lanes of an order; `replaced` permits and counts replaced images."""
    if isinstance(source.images, Resident):
        return ResidentFeed(source.images, order, lanes, workers, device)
    replace = replaced is not None and replaced.limit > 0
    views = Views(source.images, source.transform, replace)
    shared = source.stacked and order.repeats > 1 and len(lanes) > 1
    kind = SlicedFeed if shared else PlainFeed
    return kind(views, order, lanes, workers, device, source.stacked, replaced)


@dataclass
class PlainFeed:
    """A worker makes the batch of a lane."""

    views: Views
    order: Order
    lanes: Sequence[int]
    workers: int
    device: torch.device
    stacked: bool = True
    replaced: Replaced | None = None

    def batches(self, steps: Sequence[int]) -> Iterator[Batch]:
        for batch in self._load(in_turn(self.order, steps, self.lanes)):
            yield self._on_device([batch])

    def _load(self, keys: Iterable[list[View]]) -> Iterator[Batch]:
        collate = stacked if self.stacked else unstacked
        pin_memory = self.device.type == "cuda"
        return checked(loader(self.views, keys, self.workers, pin_memory, collate), self.replaced)

    def _on_device(self, pieces: list[Batch]) -> Batch:
        """A lane's batch from its pieces, each sent by itself and joined on the device.

        What the transform leaves for whole batches is done there by its `finish`, with draws that
        stay on the host.
        """
        on_host = [name for name in ("draws", "erase_boxes") if name in pieces[0]]
        drawn = {name: torch.cat([piece.pop(name) for piece in pieces]) for name in on_host}
        batch = {name: self._joined([piece[name] for piece in pieces]) for name in pieces[0]}
        finish = getattr(self.views.transform, "finish", None)
        if finish is not None:
            batch["image"] = finish(batch["image"], **drawn)
        return batch

    def _joined(self, pieces: list) -> Tensor | list[Tensor]:
        if not self.stacked:
            return [tensor.to(self.device, non_blocking=True) for tensor in pieces[0]]
        sent = [piece.to(self.device, non_blocking=True) for piece in pieces]
        return sent[0] if len(sent) == 1 else torch.cat(sent)


class SlicedFeed(PlainFeed):
    """A worker makes a slice through all lanes: an image that several lanes see is read once.

    With repeated augmentation the views of an image are neighbours in a step, in different lanes.
    """

    order: Stream

    def batches(self, steps: Sequence[int]) -> Iterator[Batch]:
        count = len(self.lanes)
        parts = self._load(unit for step in steps for unit in self.units(step))
        for step in steps:
            pieces = [next(parts) for _ in self.slices(step)]
            by_lane = [
                {name: tensor.unflatten(0, (count, -1)) for name, tensor in piece.items()}
                for piece in pieces
            ]
            for lane in range(count):
                yield self._on_device(
                    [{name: rows[lane] for name, rows in piece.items()} for piece in by_lane]
                )

    def units(self, step: int) -> Iterator[list[View]]:
        """What workers are asked for in a step, one slice of all lanes after another."""
        rows = [self.order.views(step, lane) for lane in self.lanes]
        for cut in self.slices(step):
            yield [view for lane in rows for view in lane[cut.start : cut.stop]]

    def slices(self, step: int) -> list[range]:
        """How the rows of a step's lanes are cut for workers.

        A slice has about as many views as a lane, and is the complete step without workers. Cuts
        fall between images, not between the views of one: a row is one view of each lane, so that
        is every `repeats` rows.
        """
        order = self.order
        first = step % order.steps_per_epoch * order.lane_size
        span = max(order.lane_size // len(self.lanes) // order.repeats, 1) * order.repeats
        rows = range(1, order.lane_size) if self.workers else ()
        cuts = [row for row in rows if (first + row) % span == 0]
        return [range(*pair) for pair in pairwise([0, *cuts, order.lane_size])]
