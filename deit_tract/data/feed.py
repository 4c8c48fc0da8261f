"""From workers to the device: each step's lanes as batches, an image that several lanes see read once.

With repeated augmentation the views of an image stand side by side in a step, in different lanes. A worker is
therefore given a slice through all lanes of the process, and the lanes are put together from slices.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from deit_tract.data.loader import Replaced, Views, checked, loader
from deit_tract.data.stream import Stream, View


def lane_batches(
    views: Views,
    stream: Stream,
    steps: Sequence[int],
    lanes: Sequence[int],
    workers: int,
    device: torch.device,
    replaced: Replaced | None = None,
) -> Iterator[list[Tensor]]:
    """A process's batches on its device: for each step, for each of its lanes, [images, labels].

    `replaced` counts the images that `views` put in the place of unreadable ones.
    Where the transform leaves a part to the device, `views.transform.finish(images, *others)` does it.
    """
    cut = partial(slices, stream, lanes=len(lanes), workers=workers)
    keys = (unit for step in steps for unit in units(stream, step, lanes, cut(step)))
    batches = checked(loader(views, keys, workers, pin_memory=device.type == "cuda"), replaced)
    finish = getattr(views.transform, "finish", None)
    for step in steps:
        for images, labels, *draws in _lanes(batches, len(lanes), cut(step)):
            images, labels = (_joined(parts, device) for parts in (images, labels))
            yield [finish(images, *map(torch.cat, draws)) if finish else images, labels]


def _lanes(batches: Iterator, lanes: int, cuts: list[range] | None) -> Iterator[list[list[Tensor]]]:
    """Each lane's tensors, each in pieces: one, or one of every slice."""
    if cuts is None:
        for _ in range(lanes):
            yield [[tensor] for tensor in next(batches)]
        return
    pieces = [next(batches) for _ in cuts]
    pieces = [[tensor.unflatten(0, (lanes, -1)) for tensor in piece] for piece in pieces]
    for lane in range(lanes):
        yield [[tensor[lane] for tensor in tensors] for tensors in zip(*pieces, strict=True)]


def _joined(pieces: list[Tensor], device: torch.device) -> Tensor:
    """Moved one by one and joined on the device."""
    moved = [piece.to(device, non_blocking=True) for piece in pieces]
    return moved[0] if len(moved) == 1 else torch.cat(moved)


def slices(stream: Stream, step: int, lanes: int, workers: int) -> list[range] | None:
    """How the rows of a step's lanes are cut for workers; None where no two lanes show the same image.

    A slice has about as many views as a lane, and is the whole step where there are no workers. Cuts fall between
    images, not between the views of one: a row is one view of each lane, so that is every `repeats` rows.
    """
    if stream.repeats == 1 or lanes == 1:
        return None
    first = step % stream.steps_per_epoch * stream.lane_size
    span = max(stream.lane_size // lanes // stream.repeats, 1) * stream.repeats
    cuts = (
        [row for row in range(1, stream.lane_size) if (first + row) % span == 0] if workers else []
    )
    return [range(*pair) for pair in pairwise([0, *cuts, stream.lane_size])]


def units(
    stream: Stream, step: int, lanes: Sequence[int], cuts: list[range] | None
) -> Iterator[list[View]]:
    """What workers are asked for, one unit after another: lanes, or slices of all lanes."""
    rows = [stream.views(step, lane) for lane in lanes]
    if cuts is None:
        yield from rows
        return
    for cut in cuts:
        yield [view for lane in rows for view in lane[cut.start : cut.stop]]
