"""Durations in steps."""

from deit_tract.common.errors import UserError
from deit_tract.recipe.settings.recipe import Schedule


def in_steps(part, stem: str, steps_per_epoch: int) -> int | None:
    """A duration of a recipe section, `{stem}steps` or `{stem}epochs`, in optimizer steps; None where not set."""
    steps, epochs = getattr(part, f"{stem}steps"), getattr(part, f"{stem}epochs")
    return steps if epochs is None else round(epochs * steps_per_epoch)


def total_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """The run's length. Raises UserError where it rounds to nothing."""
    total = in_steps(schedule, "", steps_per_epoch)
    if total < 1:
        raise UserError(
            "schedule.epochs",
            f"{schedule.epochs} epochs of {steps_per_epoch} steps are none",
            "raise it",
        )
    return total
