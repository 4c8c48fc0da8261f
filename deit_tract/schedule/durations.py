"""Durations in steps."""

from deit_tract.common.errors import UserError
from deit_tract.recipe.settings.recipe import Schedule


def in_steps(section, stem: str, steps_per_epoch: int) -> int | None:
    """A section's `{stem}steps` or `{stem}epochs` in optimizer steps; None if not set."""
    epochs = getattr(section, f"{stem}epochs")
    return getattr(section, f"{stem}steps") if epochs is None else round(epochs * steps_per_epoch)


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """The length of the run. Raises UserError if it rounds to 0."""
    total = in_steps(schedule, "", steps_per_epoch)
    if total < 1:
        what = f"{schedule.epochs} epochs of {steps_per_epoch} steps are none"
        raise UserError("schedule.epochs", what, "raise it")
    return total
