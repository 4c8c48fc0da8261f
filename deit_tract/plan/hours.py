"""Hours of many runs, from counted FLOPs: each network is counted once, however long it trains."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from deit_tract.data.stream import Stream
from deit_tract.models.build import build_model
from deit_tract.models.precision import resolve_precision
from deit_tract.plan.cost import Cost, measure, speed
from deit_tract.plan.gpus import GPUS
from deit_tract.plan.plan import count_events, count_samples
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.schedule.durations import in_steps, total_steps

COUNTED = ("model", "batch", "precision", "detect")  # sections that decide a network's cost


class Estimate(NamedTuple):
    hours: float  # of one GPU, evaluations included
    steps: int  # of the complete run


def estimate_hours(recipes: Iterable[Recipe], gpu: str) -> list[Estimate | None]:
    """Return what each recipe's run takes on one GPU.

    By the plan's rule: MFU of the GPU's peak, or kernel launches. None if the number of images is
    not known or the GPU lacks the precision. As in `--plan`, TrAct's own work is left out.
    """
    costs: dict[str, Cost] = {}
    return [_hours(recipe, gpu, costs) for recipe in recipes]


def _hours(recipe: Recipe, gpu: str, costs: dict[str, Cost]) -> Estimate | None:
    samples = count_samples(recipe.data, recipe.detect)
    if samples is None:
        return None
    batch = recipe.batch
    settings = (batch.lanes, batch.lane_size, recipe.augment.repeats, recipe.seed)
    per_epoch = Stream(samples[0], *settings).steps_per_epoch
    steps = total_steps(recipe.schedule, per_epoch)
    cost = _cost(recipe, costs)
    rate = speed(recipe, cost, GPUS[gpu])
    if not rate:
        return None
    every = in_steps(recipe.evaluate, "every_", per_epoch)
    models = 1 if recipe.ema.decay is None else 2
    evaluated = count_events(every, steps) * models * samples[1]
    share = cost.forward / cost.training  # of an evaluated image's cost in a trained one's
    return Estimate((steps * batch.size + share * evaluated) / rate / 3600, steps)


def _cost(recipe: Recipe, costs: dict[str, Cost]) -> Cost:
    """Count a recipe's network, or take what was counted for one of the same shapes."""
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"tract": None})})
    sections = recipe.model_dump_json(include=set(COUNTED))
    key = f"{sections} {recipe.data.image_size} {recipe.data.channels} {recipe.data.classes}"
    if key not in costs:
        with torch.device("meta"):
            net = build_model(recipe)
        costs[key] = measure(resolve_precision(recipe), net)
    return costs[key]
