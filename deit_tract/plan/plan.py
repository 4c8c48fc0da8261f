"""What a recipe will do and need, before it does it: no data, no GPU, no weights.

`make_plan(recipe, folder)` computes a Plan, or raises all mistakes that would stop the run; text.py
and, for N GPUs, scaling.py make the text of it. Counts are exact and come from the code that
trains. Memory, hours and cores are estimates, each printed with its rule.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import GIB, format_bytes
from deit_tract.data.sets.load import check_class_count, load_splits
from deit_tract.data.sets.split import shared_count
from deit_tract.data.stream import Stream
from deit_tract.models.precision import resolve_precision, this_device
from deit_tract.plan.cost import Cost, estimate_memory, speed
from deit_tract.plan.gpus import GPUS
from deit_tract.plan.probe import attempt, check_memory, most_memory, probe
from deit_tract.plan.remarks import remarks
from deit_tract.recipe import published
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.launch import (
    ABLE,
    Launch,
    check_folder,
    lanes_of,
    launch_problems,
    read_launch,
)
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Data, Recipe, Save
from deit_tract.schedule.durations import in_steps, total_steps
from deit_tract.schedule.learning_rate import learning_rate

PROCESSES = (1, 2, 4, 8)
MOST_GPUS = 2**16
CLASSES = 1000  # counted with, if only the data tells their number


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
        if self.saves is None:
            return None
        return min(self.saves, self.recipe.save.keep) * self.checkpoint


# ---- computing -----------------------------------------------------------------------------------


def make_plan(recipe: Recipe, folder: Path, gpus: int | None = None) -> Plan:
    """The plan of a run in `folder`: as it is launched here, or on `gpus` GPUs elsewhere.

    Raises UserErrors with every mistake that would stop the run.
    """
    errors: list[UserError] = []
    notes = _notes(recipe)
    if recipe.data.classes is None:
        data = recipe.data.model_copy(update={"classes": CLASSES})
        recipe = recipe.model_copy(update={"data": data})
    resolved = resolve_precision(recipe)
    launch = attempt(errors, _launch, gpus)
    if launch is not None:
        errors += launch_problems(resolved, launch)
    cost = probe(resolved, errors)
    if cost is not None:
        attempt(errors, check_memory, resolved, cost, most_memory(), "the largest known GPU")
    samples = attempt(errors, count_samples, recipe.data, recipe.detect)
    batch = recipe.batch
    stream = None
    if samples is not None:
        settings = (batch.lanes, batch.lane_size, recipe.augment.repeats, recipe.seed)
        stream = attempt(errors, Stream, samples[0], *settings)
    times = _times(recipe, stream, errors)
    memory = {} if cost is None else estimate_memory(recipe, cost)
    checkpoint = sum(memory.get(part, 0) for part in ("weights", "optimizer", "EMA"))
    bests = most_bests(resolved.save, times) * (checkpoint - memory.get("optimizer", 0))
    attempt(errors, _check_folder, folder, resolved.save.keep, checkpoint, bests)
    if recipe.expect.published is not None:
        attempt(errors, published.find, recipe.expect.published)
    if errors:
        raise UserErrors(errors)
    found = remarks(resolved, stream and stream.steps_per_epoch, this_device().name)
    counts = [n for n in PROCESSES if n <= batch.lanes] if gpus is None else [gpus]
    shares = {n: [len(lanes_of(rank, n, batch.lanes)) for rank in range(n)] for n in counts}
    return Plan(
        recipe=recipe,
        folder=folder,
        cost=cost,
        samples=samples,
        stream=stream,
        shares=shares,
        memory=memory,
        checkpoint=checkpoint,
        notes=[*_sample_notes(recipe, samples), *notes, *_other_run(folder, resolved), *found],
        **times,
    )


def _launch(gpus: int | None) -> Launch:
    """The launch that this process is part of, or on `gpus` GPUs of which nothing is known."""
    launch = read_launch(os.environ, this_device())
    if gpus is None:
        return launch
    if not 1 <= gpus <= MOST_GPUS:
        raise UserError("--gpus", f"{gpus} is out of range", f"give 1 to {MOST_GPUS:,}")
    return replace(launch, processes=gpus, device=ABLE)


def count_samples(data: Data, detect: FasterRcnn | None = None) -> tuple[int, int] | None:
    """Training and validation images: counted if the data is there, else the data set's own.

    None if they are unknown. Raises what the run would about the data.
    """
    facts = DATASETS[data.name]
    at_hand = data.dir is not None if facts.on_disk else facts.train is None
    if at_hand:
        return tuple(len(split) for split in load_splits(data, detect))
    if facts.train is None:
        return None
    check_class_count(data, facts.classes)
    return shared_count(data, facts.train), facts.val


def _times(recipe: Recipe, stream: Stream | None, errors: list[UserError]) -> dict[str, Any]:
    """Steps, learning rates, evaluations and saves; None if the number of images is needed."""
    unknown = {"steps": recipe.schedule.steps, "rates": [], "evaluations": None, "saves": None}
    if stream is None:
        return unknown
    per_epoch = stream.steps_per_epoch
    lr = attempt(errors, learning_rate, recipe, per_epoch)
    if lr is None:
        return unknown
    steps = total_steps(recipe.schedule, per_epoch)
    evaluate = in_steps(recipe.evaluate, "every_", per_epoch)
    save = in_steps(recipe.save, "every_", per_epoch)
    return {
        "steps": steps,
        "rates": learning_rates(lr, steps, per_epoch),
        "evaluations": count_events(evaluate, steps),
        "saves": count_events(save, steps),
    }


def learning_rates(
    lr: Callable[[int], float], steps: int, per_epoch: int
) -> list[tuple[int, int, float]]:
    """(epoch, step, lr) at the start of the first epochs and of each quarter, and at the end."""
    epochs = math.ceil(steps / per_epoch)
    shown = {0, 1, 2, 5, 6, *(epochs * quarter // 4 for quarter in (1, 2, 3))}
    starts = {epoch * per_epoch for epoch in shown if epoch * per_epoch < steps}
    return [(step // per_epoch, step, lr(step)) for step in sorted(starts | {steps - 1})]


def count_events(every: int | None, steps: int) -> int:
    """How often something happens that is due every `every` steps and at the end."""
    return 1 if every is None else math.ceil(steps / max(every, 1))


def _other_run(folder: Path, recipe: Recipe) -> list[str]:
    """A note if another recipe's run is in the folder: planning beside it is no mistake."""
    try:
        check_folder(folder, recipe)
    except UserError as error:
        return [f"starting would be refused: {error}"]
    return []


def most_bests(save: Save, times: dict[str, Any]) -> int:
    """How many best evaluations' weights may lie on disk: per kept checkpoint, and since it."""
    if not save.best:
        return 0
    evaluations, saves = times["evaluations"] or 1, times["saves"] or 1
    return min(evaluations, save.keep + math.ceil(evaluations / saves))


def _check_folder(folder: Path, keep: int, checkpoint: int, bests: int) -> None:
    """Raise UserError if the run could not write in its folder, or lacks disk space.

    checkpoint: bytes of one; bests: of the weights of the best evaluations.
    """
    parents = (folder.absolute(), *folder.absolute().parents)
    nearest = next(path for path in parents if path.exists())
    reason = None
    if not nearest.is_dir():
        reason = f"{nearest} is not a folder"
    elif not os.access(nearest, os.W_OK):
        reason = f"no permission in {nearest}"
    if reason is not None:
        raise UserError(folder, f"cannot be written ({reason})", "choose another --output")
    there = sum(file.stat().st_size for file in folder.glob("checkpoints/*/*"))
    need = (keep + 1) * checkpoint + bests - there
    free = shutil.disk_usage(nearest).free
    if need > free:
        also = " and the best weights" if bests else ""
        kept = f"{keep} + 1 checkpoints{also}"
        what = f"{format_bytes(free)} are free, {kept} need {format_bytes(need)}"
        raise UserError(folder, what, "free some space, lower save.keep or choose another --output")


def _sample_notes(recipe: Recipe, samples: tuple[int, int] | None) -> list[str]:
    """Remarks on the images, which are not errors."""
    if samples is None:
        return ["unknown without --data-dir DIR: how many images, and what follows from that"]
    if DATASETS[recipe.data.name].on_disk and recipe.data.dir is None:
        return ["the data was not looked at: give --data-dir DIR to check it"]
    return []


def _notes(recipe: Recipe) -> list[str]:
    """Remarks on the recipe, which are not errors."""
    notes = []
    if recipe.data.classes is None:
        notes.append(f"classes are counted in the data; without --data-dir DIR {CLASSES:,} assumed")
    if recipe.model.pretrained:
        weights = "RUN|FILE|timm:NAME|torchvision:NAME"
        notes.append(f"starts from given weights: finetune.py --checkpoint {weights}")
    return notes


# ---- estimates from a plan -----------------------------------------------------------------------


def hours(plan: Plan, rate: float, processes: int, eval_cost: float) -> tuple[float, float] | None:
    """Hours of training and of evaluation at `rate` training images/s per process.

    The process with most lanes sets the pace. eval_cost: of an image, relative to training.
    """
    if plan.steps is None or plan.samples is None:
        return None
    images = plan.steps * max(plan.shares[processes]) * plan.recipe.batch.lane_size
    models = 1 if plan.recipe.ema.decay is None else 2
    evaluated = plan.evaluations * models * plan.samples[1] / processes
    return images / rate / 3600, eval_cost * evaluated / rate / 3600


def gpu_rates(plan: Plan) -> dict[str, float | str]:
    """Training images/s of each known GPU, or why it cannot train the recipe."""
    needed = sum(plan.memory.values())
    rates: dict[str, float | str] = {}
    for name, gpu in GPUS.items():
        rate = speed(plan.recipe, plan.cost, gpu)
        if not rate:
            rates[name] = "has no bf16"
        elif needed > gpu.memory * GIB:
            rates[name] = f"a lane needs more than {gpu.memory} GiB"
        else:
            rates[name] = rate
    return rates
