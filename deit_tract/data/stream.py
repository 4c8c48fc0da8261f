"""The stream: which view of which image stands where, as pure functions of (seed, epoch, step, lane, position).

A batch is `lanes` equal lanes, each what one GPU of the published run sees. Nothing here holds random state: a view's
crop and colours, a lane's mixup and drop path are drawn from generators seeded by what they are for, so a run can start
at any step, on any number of processes, with any number of workers, and sees the same pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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
            raise UserError(
                "batch.size", what, f"use at most {max(self.views_per_lane, 1) * self.lanes}"
            )

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
            self._order[epoch] = torch.randperm(
                self.samples, generator=torch.Generator().manual_seed(seed)
            )
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
