"""The stream: which view of which image comes where, as pure functions of seed, step and lane.

A batch is `lanes` equal lanes, each what one GPU of the published run sees. Nothing here holds
random state: a view's crop and colours, a lane's mixup and drop path are drawn from generators
seeded by what they are for. So a run can start at any step, on any number of processes, with any
number of workers, and sees the same pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive


class View(NamedTuple):
    """One augmented look at one image."""

    index: int  # of the sample in the data set
    seed: int  # of everything the transform draws


@dataclass(frozen=True)
class Stream:
    """The order of a training run over `samples` images, dealt to lanes.

    With seed 0 a lane gets the indices that the reference's sampler gives the GPU of that number:
    DeiT's RASampler (samplers.py: a permutation seeded by the epoch, each index `repeats` times in
    a row, dealt out by rank, cut to a multiple of 256 images per epoch), without repeats torch's
    DistributedSampler.
    """

    samples: int
    lanes: int
    lane_size: int
    repeats: int = 1
    seed: int = 0
    _order: dict[int, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if self.steps_per_epoch == 0:
            given = self.views_per_lane
            wanted = f"the {self.lane_size} views of one step"
            what = f"{self.samples} images give a lane {given} of {wanted}"
            raise UserError("batch.size", what, f"use at most {max(given, 1) * self.lanes}")

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
            generator = torch.Generator().manual_seed(seed)
            self._order.clear()
            self._order[epoch] = torch.randperm(self.samples, generator=generator)
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


@dataclass(frozen=True)
class Once:
    """Every sample once, unchanged: lane r of `lanes` takes samples r, r + lanes, ..."""

    samples: int
    lanes: int
    lane_size: int
    repeats: ClassVar[int] = 1

    def views(self, step: int, lane: int) -> list[View]:
        mine = range(lane, self.samples, self.lanes)
        first = step * self.lane_size
        return [View(index, 0) for index in mine[first : first + self.lane_size]]

    def steps(self, lane: int) -> int:
        """Batches of a lane, the last of which may be smaller."""
        return -(-len(range(lane, self.samples, self.lanes)) // self.lane_size)


class Order(Protocol):
    """The views of each step's lanes: a `Stream` in training, `Once` in an evaluation."""

    repeats: int

    def views(self, step: int, lane: int) -> list[View]: ...


def in_turn(order: Order, steps: Sequence[int], lanes: Sequence[int]) -> Iterator[list[View]]:
    """For each step, for each of the lanes, its views."""
    return (order.views(step, lane) for step in steps for lane in lanes)
