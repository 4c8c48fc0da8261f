"""Stages of a run in which an image costs more and more, within a budget: pure arithmetic.

Costs are FLOPs of one image's forward pass, counted from shapes. A budget is such a cost times
epochs; papers give it in GMACs, 2e9 FLOPs each (Xia et al., ICLR 2023, slides).
"""

import itertools
import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from deit_tract.common.errors import UserError

GMAC = 2 * 10**9  # FLOPs


@dataclass(frozen=True)
class Timetable:
    """When each stage begins and what was spent by a step; a function of the step only.

    steps: of each stage. costs: of an image in each stage, in FLOPs of a forward pass.
    """

    steps: tuple[int, ...]
    costs: tuple[int, ...]
    steps_per_epoch: int

    def __post_init__(self) -> None:
        for number, steps in enumerate(self.steps, 1):
            if steps < 1:
                what = f"stage {number} of {len(self.steps)} has no step"
                raise UserError("curriculum", what, "raise the budget, or the stage's epochs")

    @property
    def starts(self) -> list[int]:
        """The first step of each stage."""
        return [0, *itertools.accumulate(self.steps[:-1])]

    @property
    def total(self) -> int:
        """The length of the run in steps."""
        return sum(self.steps)

    def stage(self, step: int) -> int:
        """Return the stage of a step, from 0; of the end of the run, the last."""
        return bisect(self.starts, step) - 1

    def begins(self, step: int) -> bool:
        """Tell whether a stage begins with this step."""
        return step in self.starts

    def spent(self, step: int) -> float:
        """Return what the steps before this one have cost, in GMACs times epochs."""
        return self._spent(step) / (GMAC * self.steps_per_epoch)

    def progress(self, step: int) -> float:
        """Return the share of the run's cost that was spent before this step: 0 to 1."""
        return self._spent(step) / self._spent(self.total)

    def _spent(self, step: int) -> int:
        stages = zip(self.starts, self.steps, self.costs, strict=True)
        return sum(cost * min(max(step - start, 0), steps) for start, steps, cost in stages)


def by_epochs(costs: Sequence[int], epochs: Sequence[float], steps_per_epoch: int) -> Timetable:
    """Return the stages of given lengths in epochs, rounded to steps.

    Raises UserError if one rounds to 0.
    """
    steps = tuple(round(length * steps_per_epoch) for length in epochs)
    return Timetable(steps, tuple(costs), steps_per_epoch)


def by_budget(
    costs: Sequence[int], budget: Fraction, ratio: float, steps_per_epoch: int
) -> Timetable:
    """Return the stages that spend a budget and never exceed it; less than one step is left over.

    budget: FLOPs of an image times epochs, see `gmac_budget` and `share_budget`.
    ratio: steps of a stage to those of the stage before; they are rounded down, and the last stage
        takes what is left.
    Raises UserError if a stage has no step.
    """
    to_spend = math.floor(budget * steps_per_epoch)
    parts = [ratio**stage for stage in range(len(costs))]
    unit = to_spend / sum(part * cost for part, cost in zip(parts, costs, strict=True))
    steps = [math.floor(unit * part) for part in parts[:-1]]
    left = to_spend - sum(count * cost for count, cost in zip(steps, costs, strict=False))
    return Timetable((*steps, max(left, 0) // costs[-1]), tuple(costs), steps_per_epoch)


def gmac_budget(gmac: float) -> Fraction:
    """Return a budget given in GMACs of a forward pass times epochs."""
    return _as_written(gmac) * GMAC


def share_budget(share: float, epochs: float, cost: int) -> Fraction:
    """Return a share of what `epochs` of the full model cost; cost: of one image in it."""
    return _as_written(share) * _as_written(epochs) * cost


def _as_written(number: float) -> Fraction:
    """The number that a person wrote, which a float may miss: 0.7 x 300 epochs are 210."""
    return Fraction(number).limit_denominator(10**6)
