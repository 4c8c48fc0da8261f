"""What a recipe will do and need, before it does it: no data, no GPU, no weights.

`make(recipe, folder)` computes a Plan, or raises all mistakes that the run would stop at; `show(plan)` is its text.
Counts are exact and come from the code that trains. Memory, hours and cores are estimates, each printed with its rule.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import format_bytes
from deit_tract.data.sets.load import check_class_count, load_splits
from deit_tract.data.stream import Stream
from deit_tract.models.build import build_model
from deit_tract.models.precision import resolve_precision
from deit_tract.plan.cost import Cost, estimate_memory, measure
from deit_tract.recipe import published
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.launch import check_folder, check_trackers, lanes_of
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Data, Recipe
from deit_tract.schedule.durations import in_steps, total_steps
from deit_tract.schedule.learning_rate import learning_rate

PROCESSES = (1, 2, 4, 8)
CORE_RATE = (
    184  # images/s: DeiT's pipeline in PIL, 224 px crops of ImageNet's JPEGs, one Zen 4 core
)
FAST = {
    "colours": 2.2,
    "RandAugment": 1.4,
}  # `fast` for a GPU, times that (docs/benchmarks.md, made images)


@dataclass(frozen=True)
class Plan:
    """A recipe's run in numbers; None is what cannot be known without the data."""

    recipe: Recipe
    folder: Path
    cost: Cost
    samples: tuple[int, int] | None  # training and validation images
    stream: Stream | None
    steps: int | None
    rates: list[tuple[int, int, float]]  # epoch, step, learning rate
    evaluations: int | None
    saves: int | None
    shares: dict[int, list[int]]  # processes -> lanes of each
    memory: dict[str, int]  # bytes on a GPU
    checkpoint: int  # bytes
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int | None:
        """Bytes of the checkpoints that stay."""
        return (
            None if self.saves is None else min(self.saves, self.recipe.save.keep) * self.checkpoint
        )


# ---- computing -------------------------------------------------------------------------------------------------------


def make_plan(recipe: Recipe, folder: Path) -> Plan:
    """The plan of a run in `folder`. Raises UserErrors with every mistake that the run would stop at."""
    errors: list[UserError] = []
    net = _build(recipe, errors)
    cost = _try(errors, measure, recipe, net) if net is not None else None
    samples = _try(errors, count_samples, recipe.data, recipe.detect)
    batch, augment = recipe.batch, recipe.augment
    stream = samples and _try(
        errors, Stream, samples[0], batch.lanes, batch.lane_size, augment.repeats, recipe.seed
    )
    times = _times(recipe, stream, errors)
    memory = {} if cost is None else estimate_memory(recipe, cost)
    checkpoint = sum(memory.get(part, 0) for part in ("weights", "optimizer", "EMA"))
    _try(errors, _check_folder, folder, resolve_precision(recipe), checkpoint)
    _try(errors, check_trackers, recipe)
    if recipe.expect.published is not None:
        _try(errors, published.find, recipe.expect.published)
    if errors:
        raise UserErrors(errors)
    shares = {
        n: [len(lanes_of(rank, n, batch.lanes)) for rank in range(n)]
        for n in PROCESSES
        if n <= batch.lanes
    }
    return Plan(
        recipe,
        folder,
        cost,
        samples,
        stream,
        *times,
        shares,
        memory,
        checkpoint,
        _notes(recipe, samples),
    )


def _try(errors: list[UserError], function: Callable, *args) -> Any:
    """The function's result; its UserError goes to the list instead."""
    try:
        return function(*args)
    except UserErrors as several:
        errors += several.args[0]
    except UserError as error:
        errors.append(error)
    return None


def _build(recipe: Recipe, errors: list[UserError]) -> nn.Module | None:
    """The model without numbers. What it cannot have is left out after its error, so that all are found."""
    switches = {"model.class_token_std": None, "model.drop_path": 0.0, "model.tract": None}
    while True:
        try:
            with torch.device("meta"):
                return build_model(recipe)
        except UserError as error:
            errors.append(error)
            if error.args[0] not in switches:
                return None
            changed = {error.args[0].removeprefix("model."): switches.pop(error.args[0])}
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)})


def count_samples(data: Data, detect: FasterRcnn | None = None) -> tuple[int, int] | None:
    """Training and validation images: counted where the data is at hand, else the data set's own; None: unknown.

    Raises what the run would about the data.
    """
    facts = DATASETS[data.name]
    at_hand = data.dir is not None if facts.on_disk else facts.train is None
    if at_hand:
        return tuple(len(split) for split in load_splits(data, detect))
    if facts.train is None:
        return None
    check_class_count(data, facts.classes)
    return facts.train, facts.val


def _times(recipe: Recipe, stream: Stream | None, errors: list[UserError]) -> tuple:
    """Steps, learning rates, evaluations and saves; None where they follow from an unknown number of images."""
    per_epoch = stream.steps_per_epoch if stream else None
    lr = stream and _try(errors, learning_rate, recipe, per_epoch)
    if lr is None:
        return recipe.schedule.steps, [], None, None
    steps = total_steps(recipe.schedule, per_epoch)
    every = [in_steps(part, "every_", per_epoch) for part in (recipe.evaluate, recipe.save)]
    return (
        steps,
        learning_rates(lr, steps, per_epoch),
        *(occasions(number, steps) for number in every),
    )


def learning_rates(
    lr: Callable[[int], float], steps: int, per_epoch: int
) -> list[tuple[int, int, float]]:
    """(epoch, step, lr) at the start of the first epochs and of each quarter, and at the last step."""
    epochs = math.ceil(steps / per_epoch)
    starts = {
        epoch * per_epoch
        for epoch in (0, 1, 2, 5, 6, *(epochs * quarter // 4 for quarter in (1, 2, 3)))
    }
    return [
        (step // per_epoch, step, lr(step))
        for step in sorted({s for s in starts if s < steps} | {steps - 1})
    ]


def occasions(every: int | None, steps: int) -> int:
    """How often something happens that is due every so many steps and at the end."""
    return 1 if every is None else math.ceil(steps / max(every, 1))


def _check_folder(folder: Path, recipe: Recipe, checkpoint: int) -> None:
    """Raises UserError where the run could not begin or go on in its folder, or its disk is too small."""
    check_folder(folder, recipe)
    nearest = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = (
            f"{nearest} is not a folder" if not nearest.is_dir() else f"no permission in {nearest}"
        )
        raise UserError(folder, f"cannot be written ({reason})", "choose another --output")
    there = sum(file.stat().st_size for file in folder.glob("checkpoints/*/*"))
    need, free = (recipe.save.keep + 1) * checkpoint - there, shutil.disk_usage(nearest).free
    if need > free:
        what = f"{format_bytes(free)} are free, {recipe.save.keep} + 1 checkpoints need {format_bytes(need)}"
        raise UserError(folder, what, "free some space, lower save.keep or choose another --output")


def _notes(recipe: Recipe, samples: tuple[int, int] | None) -> list[str]:
    """What is no mistake, and good to know."""
    notes = []
    if samples is None:
        notes.append(
            "unknown until --data-dir DIR is given: how many images, and what follows from that"
        )
    elif DATASETS[recipe.data.name].on_disk and recipe.data.dir is None:
        notes.append("the data was not looked at: give --data-dir DIR to check it")
    if recipe.precision.autocast == "fp16" and not torch.cuda.is_available():
        notes.append("fp16 needs a CUDA GPU, which this machine does not have")
    if recipe.model.pretrained:
        notes.append(
            "starts from given weights: finetune.py --checkpoint RUN|FILE|timm:NAME|torchvision:NAME"
        )
    return notes


# ---- estimates from a plan -------------------------------------------------------------------------------------------


def hours(plan: Plan, rate: float, processes: int, looking: float) -> float | None:
    """Hours of training and evaluation at `rate` training images/s a process; that with most lanes sets the pace.

    looking: what an image costs in evaluation, by what it costs in training.
    """
    if plan.steps is None or plan.samples is None:
        return None
    trained = plan.steps * max(plan.shares[processes]) * plan.recipe.batch.lane_size
    looks = plan.evaluations * (2 if plan.recipe.ema.decay is not None else 1)
    return (trained + looking * looks * plan.samples[1] / processes) / rate / 3600
