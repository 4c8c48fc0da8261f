"""The learning rate as a pure function of the step."""

import math
from collections.abc import Callable

from deit_tract.common.errors import UserError
from deit_tract.recipe.settings.recipe import Recipe, Schedule
from deit_tract.schedule.durations import in_steps, total_steps


def learning_rate(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """Return lr(step) for step = 0, 1, ...: linear warm-up, then schedule.name over the run.

    The fall begins at step 0, or with schedule.warmup_prefix at the end of the warm-up. With
    schedule.update "epoch" an epoch has one rate, that of the start of the epoch before: DeiT's
    main.py steps timm's scheduler with the epoch that has ended, so epochs 0 and 1 both run at the
    first rate and the others lag.
    """
    schedule = recipe.schedule
    peak = recipe.optim.lr
    total = total_steps(schedule, steps_per_epoch)
    warmup = in_steps(schedule, "warmup_", steps_per_epoch) or 0
    if warmup > total:
        raise UserError("schedule", f"warm-up of {warmup} steps in a run of {total}", "shorten it")
    milestones = [round(epoch * steps_per_epoch) for epoch in schedule.milestones]

    def lr(step: int) -> float:
        step = _scheduled_step(schedule, step, steps_per_epoch)
        if step < warmup:
            return schedule.warmup_lr + (peak - schedule.warmup_lr) * step / warmup
        if schedule.name == "constant":
            return peak
        if schedule.name == "multistep":
            return peak * schedule.gamma ** sum(step >= milestone for milestone in milestones)
        first = warmup if schedule.warmup_prefix else 0
        share = (step - first) / (total - first)
        return schedule.min_lr + (peak - schedule.min_lr) * FALLS[schedule.name](share)

    return lr


def _cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def _linear(share: float) -> float:
    """Li et al. 2020, "Budgeted Training: Rethinking Deep Neural Network Training"."""
    return 1 - share


def _rex(share: float) -> float:
    """Chen et al. 2022, "REX: Revisiting Budgeted Training with an Improved Schedule"."""
    return (1 - share) / (0.5 + (1 - share) / 2)


# What is left of the peak after a share of the run, by schedule.name
FALLS = {"cosine": _cosine, "linear": _linear, "rex": _rex}


def _scheduled_step(schedule: Schedule, step: int, steps_per_epoch: int) -> int:
    """The step whose rate is used at `step`."""
    if schedule.update == "step":
        return step
    return max(step // steps_per_epoch - 1, 0) * steps_per_epoch


def ends_in_warmup(recipe: Recipe, steps_per_epoch: int) -> bool:
    """Whether even the last step has a rate of the warm-up, as in a short test of a long recipe."""
    schedule = recipe.schedule
    warmup = in_steps(schedule, "warmup_", steps_per_epoch) or 0
    last = total_steps(schedule, steps_per_epoch) - 1
    return _scheduled_step(schedule, last, steps_per_epoch) < warmup
