"""What is allowed but seldom meant: notes of `--plan`, and of a run when it starts."""

import math
from collections.abc import Iterator

from deit_tract.plan.gpus import gain_of_half
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.schedule.durations import total_steps
from deit_tract.schedule.learning_rate import ends_in_warmup, learning_rate


def remarks(recipe: Recipe, steps_per_epoch: int | None, gpu: str) -> Iterator[str]:
    """What to look at twice.

    recipe: with its precision resolved; steps_per_epoch: None if unknown; gpu: the name of the
    CUDA device that trains, empty if there is none.
    """
    if steps_per_epoch is not None and ends_in_warmup(recipe, steps_per_epoch):
        steps = total_steps(recipe.schedule, steps_per_epoch)
        last = learning_rate(recipe, steps_per_epoch)(steps - 1)
        unit = "steps" if recipe.schedule.warmup_epochs is None else "epochs"
        ends = f"the last rate is {last:.3g}, optim.lr {recipe.optim.lr:g}"
        yield (
            f"the run never leaves the warm-up: {ends}; "
            f"train longer, or --set schedule.warmup_{unit}=0"
        )
    if gpu and recipe.precision.autocast is None:
        gain = gain_of_half(gpu)
        faster = f"has {gain:.0f} times the peak in 16 bits" if gain else "is faster in 16 bits"
        yield f"float32, but {gpu} {faster}: --set precision.autocast=auto"


def other_batch(recipe: Recipe, own: Recipe) -> Iterator[str]:
    """What optim.lr would be for another batch than the recipe's own, by the two usual rules."""
    factor = recipe.batch.size / own.batch.size
    if factor == 1:
        return
    rate = own.optim.lr
    kept = "is kept" if recipe.optim.lr == rate else f"of the recipe is {rate:g}"
    yield (
        f"batch.size is {recipe.batch.size:,} instead of {own.batch.size:,}; optim.lr "
        f"{recipe.optim.lr:g} {kept}: scaled linearly it would be {rate * factor:.3g}, "
        f"by the square root {rate * math.sqrt(factor):.3g} (--set optim.lr=...)"
    )
