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

from deit_tract import models, optim, published
from deit_tract.cost import GIB, GPUS, LAUNCHES, MFU, Cost, estimate_memory, image_shape, measure, precision_name, speed
from deit_tract.data import datasets, imagenet, official, voc
from deit_tract.data.stream import Stream, lanes_of
from deit_tract.errors import UserError, UserErrors
from deit_tract.folder import check_folder
from deit_tract.log import check_trackers
from deit_tract.schema import Data, Recipe
from deit_tract.schema_detect import Detect

# Training images, validation images, classes of what needs no look: ILSVRC2012; scikit-learn's digits, a fifth held out
KNOWN = {"imagenet": (imagenet.TRAIN, imagenet.VAL, 1000), "digits": (1_437, 360, 10)}
KNOWN |= {name: (facts.train, facts.val, facts.classes) for name, facts in official.FACTS.items()}
KNOWN |= {"voc2007": (*voc.COUNTS.values(), 20)}
ON_DISK = ("imagenet", "folder", *official.FACTS, "voc", "voc2007")
PROCESSES = (1, 2, 4, 8)
CORE_RATE = 184  # images/s: DeiT's pipeline in PIL, 224 px crops of ImageNet's JPEGs, one Zen 4 core
FAST = {"colours": 2.2, "RandAugment": 1.4}  # `fast` for a GPU, times that (docs/benchmarks.md, made images)


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
        return None if self.saves is None else min(self.saves, self.recipe.save.keep) * self.checkpoint


# ---- computing -------------------------------------------------------------------------------------------------------


def make(recipe: Recipe, folder: Path) -> Plan:
    """The plan of a run in `folder`. Raises UserErrors with every mistake that the run would stop at."""
    errors: list[UserError] = []
    net = _build(recipe, errors)
    cost = _try(errors, measure, recipe, net) if net is not None else None
    samples = _try(errors, count_samples, recipe.data, recipe.detect)
    batch, augment = recipe.batch, recipe.augment
    stream = samples and _try(errors, Stream, samples[0], batch.lanes, batch.lane_size, augment.repeats, recipe.seed)
    times = _times(recipe, stream, errors)
    memory = {} if cost is None else estimate_memory(recipe, cost)
    checkpoint = sum(memory.get(part, 0) for part in ("weights", "optimizer", "EMA"))
    _try(errors, _check_folder, folder, models.resolved(recipe), checkpoint)
    _try(errors, check_trackers, recipe)
    if recipe.expect.published is not None:
        _try(errors, published.find, recipe.expect.published)
    if errors:
        raise UserErrors(errors)
    shares = {n: [len(lanes_of(rank, n, batch.lanes)) for rank in range(n)] for n in PROCESSES if n <= batch.lanes}
    return Plan(recipe, folder, cost, samples, stream, *times, shares, memory, checkpoint, _notes(recipe, samples))


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
                return models.build(recipe)
        except UserError as error:
            errors.append(error)
            if error.args[0] not in switches:
                return None
            changed = {error.args[0].removeprefix("model."): switches.pop(error.args[0])}
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)})


def count_samples(data: Data, detect: Detect | None = None) -> tuple[int, int] | None:
    """Training and validation images: counted where the data is at hand, else the data set's own; None: unknown.

    Raises what the run would about the data.
    """
    if data.name == "synthetic" or (data.name in ON_DISK and data.dir is not None):
        return tuple(len(split) for split in (voc.load(data, detect) if detect else datasets.load(data)))
    if data.name not in KNOWN:
        return None
    train, val, classes = KNOWN[data.name]
    if classes != data.classes:
        raise UserError("data.classes", f"{data.classes}, but the data has {classes}", f"set data.classes={classes}")
    return train, val


def _times(recipe: Recipe, stream: Stream | None, errors: list[UserError]) -> tuple:
    """Steps, learning rates, evaluations and saves; None where they follow from an unknown number of images."""
    per_epoch = stream.steps_per_epoch if stream else None
    lr = stream and _try(errors, optim.learning_rate, recipe, per_epoch)
    if lr is None:
        return recipe.schedule.steps, [], None, None
    steps = optim.total_steps(recipe.schedule, per_epoch)
    every = [optim.in_steps(part, "every_", per_epoch) for part in (recipe.evaluate, recipe.save)]
    return steps, learning_rates(lr, steps, per_epoch), *(occasions(number, steps) for number in every)


def learning_rates(lr: Callable[[int], float], steps: int, per_epoch: int) -> list[tuple[int, int, float]]:
    """(epoch, step, lr) at the start of the first epochs and of each quarter, and at the last step."""
    epochs = math.ceil(steps / per_epoch)
    starts = {epoch * per_epoch for epoch in (0, 1, 2, 5, 6, *(epochs * quarter // 4 for quarter in (1, 2, 3)))}
    return [(step // per_epoch, step, lr(step)) for step in sorted({s for s in starts if s < steps} | {steps - 1})]


def occasions(every: int | None, steps: int) -> int:
    """How often something happens that is due every so many steps and at the end."""
    return 1 if every is None else math.ceil(steps / max(every, 1))


def _check_folder(folder: Path, recipe: Recipe, checkpoint: int) -> None:
    """Raises UserError where the run could not begin or go on in its folder, or its disk is too small."""
    check_folder(folder, recipe)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = f"{nearest} is not a folder" if not nearest.is_dir() else f"no permission in {nearest}"
        raise UserError(folder, f"cannot be written ({reason})", "choose another --output")
    there = sum(file.stat().st_size for file in folder.glob("checkpoints/*/*"))
    need, free = (recipe.save.keep + 1) * checkpoint - there, shutil.disk_usage(nearest).free
    if need > free:
        what = f"{_bytes(free)} are free, {recipe.save.keep} + 1 checkpoints need {_bytes(need)}"
        raise UserError(folder, what, "free some space, lower save.keep or choose another --output")


def _notes(recipe: Recipe, samples: tuple[int, int] | None) -> list[str]:
    """What is no mistake, and good to know."""
    notes = []
    if samples is None:
        notes.append("unknown until --data-dir DIR is given: how many images, and what follows from that")
    elif recipe.data.name in ON_DISK and recipe.data.dir is None:
        notes.append("the data was not looked at: give --data-dir DIR to check it")
    if recipe.precision.autocast == "fp16" and not torch.cuda.is_available():
        notes.append("fp16 needs a CUDA GPU, which this machine does not have")
    if recipe.model.pretrained:
        notes.append("starts from given weights: finetune.py --checkpoint RUN|FILE|timm:NAME|torchvision:NAME")
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


# ---- printing --------------------------------------------------------------------------------------------------------


def show(plan: Plan) -> str:
    """The plan as text, each estimate with what it assumes."""
    parts = [_what(plan), _when(plan), _rates(plan), _where(plan), _memory(plan), _hours(plan)]
    parts.append([("notes" if i == 0 else "", note) for i, note in enumerate(plan.notes)])
    title = f"{plan.recipe.name}: {plan.recipe.about}"
    return "\n\n".join([title, *("\n".join(f"{a:<15}{b}".rstrip() for a, b in part) for part in parts if part)])


Lines = list[tuple[str, str]]  # label, text


def _what(plan: Plan) -> Lines:
    recipe, cost, samples = plan.recipe, plan.cost, plan.samples
    model, data = recipe.model, recipe.data
    on = f"TrAct {model.tract:g} on {cost.first_layer}" if model.tract else f"no TrAct, first layer {cost.first_layer}"
    flops = f"{cost.forward / 1e9:.4g} GFLOP forward, {cost.training / 1e9:.4g} GFLOP training"
    rule = "" if model.train == "head" else " (3 x forward, less the first layer's input gradient)"
    size = f"{cost.parameters:,} parameters"
    if cost.trainable != cost.parameters:
        size += f", {cost.trainable:,} of them trained"
    counts = f"{samples[0]:,} training and {samples[1]:,} validation images" if samples else "unknown number of images"
    lines = [("model", f"{model.name}, {size}, {on}, drop path {model.drop_path:g}"), ("per image", f"{flops}{rule}")]
    if cost.tract:
        lines.append(("", f"TrAct's Gram matrix: {cost.tract / 1e9:.2g} GFLOP at most, not in the above"))
    return [
        *lines,
        ("data", f"{data.name}: {counts}, {data.classes} classes, {' x '.join(map(str, image_shape(recipe)))} px"),
    ]


def _when(plan: Plan) -> Lines:
    recipe, stream, steps, size = plan.recipe, plan.stream, plan.steps, plan.recipe.batch.size
    if stream is None:
        return [("run", f"{steps or 'unknown number of'} steps of {size:,} images")]
    drawn = stream.steps_per_epoch * size
    different = min(stream.samples, math.ceil(drawn / stream.repeats))
    each = f", {stream.repeats} views each of {different:,}" if stream.repeats > 1 else ""
    epochs, total = steps / stream.steps_per_epoch, plan.cost.training * steps * size
    return [
        ("epoch", f"{stream.steps_per_epoch:,} steps of {size:,} = {drawn:,} images{each}"),
        ("run", f"{epochs:g} epochs, {steps:,} steps, {steps * size:,} images, {total:.3g} FLOP"),
        ("evaluations", f"{plan.evaluations:,}" + (" (weights and EMA)" if recipe.ema.decay is not None else "")),
        ("checkpoints", f"{plan.saves:,} of {_bytes(plan.checkpoint)}: {_bytes(plan.saves * plan.checkpoint)} written, "
                        f"{_bytes(plan.kept)} kept in {plan.folder}"),
    ]  # fmt: skip


def _rates(plan: Plan) -> Lines:
    """The learning rates as a table."""
    head = [("learning rate", f"{'epoch':>6}{'step':>12}{'lr':>14}")] if plan.rates else []
    return head + [("", f"{epoch:>6,}{step:>12,}{rate:>14.5g}") for epoch, step, rate in plan.rates]


def _where(plan: Plan) -> Lines:
    batch = plan.recipe.batch
    lines = [("batch", f"{batch.size:,} images in {batch.lanes} lanes of {batch.lane_size}, summed before each step")]
    for processes, lanes in plan.shares.items():
        share = f"{lanes[0]}" if lanes[0] == lanes[-1] else f"{lanes[-1]} or {lanes[0]}"
        each = f"{share} lane{'s' * (share != '1')}" + " each" * (processes > 1)
        lines.append(("", f"{processes} process{'es' * (processes > 1):<2}  {each}" + ", in turn" * (share != "1")))
    if batch.lanes < max(PROCESSES):
        lines.append(("", f"more than {batch.lanes} are refused"))
    return lines


def _memory(plan: Plan) -> Lines:
    rules = {
        "optimizer": f"{plan.recipe.optim.name}, float32",
        "activations": "what autograd saves in a forward of one lane, or batch.lanes_per_forward",
        "TrAct": "patches copied at once, Gram matrix, its factor, a solution",
        "allowance": "1 GiB and 10 % for the CUDA context and what comes and goes (a guess)",
    }
    parts = [(name, size) for name, size in plan.memory.items() if size]
    lines = [("memory", f"{_bytes(sum(plan.memory.values()))} on each GPU, an estimate:")]
    return lines + [("", f"{name:<12}{_bytes(size):>11}  {rules.get(name, '')}") for name, size in parts]


def core_rate(recipe: Recipe) -> float:
    """Images/s that one core prepares, each view from its own file: as where no two lanes share a process."""
    if recipe.data.pipeline == "exact":
        return CORE_RATE
    return CORE_RATE * FAST["RandAugment" if recipe.augment.rand_augment else "colours"]


def pipeline_name(recipe: Recipe) -> str:
    return "DeiT's pipeline" if recipe.data.pipeline == "exact" else "data.pipeline fast"


def _hours(plan: Plan) -> Lines:
    """A line a GPU: hours on so many of them, images/s that one takes, and the cores that prepare those."""
    recipe, counts, needed = plan.recipe, list(plan.shares), sum(plan.memory.values())
    on_disk, core = recipe.data.name in ON_DISK and not recipe.data.resident, core_rate(recipe)

    def row(name: str, rate: float, looking: float) -> tuple[str, str]:
        times = [hours(plan, rate, n, looking) for n in counts]
        cells = "".join(f"{'unknown' if time is None else f'{time:.3g}':>9}" for time in times)
        return f"  {name}", f"{cells}{rate:>12,.0f}" + f"{math.ceil(rate / core):>8,}" * on_disk

    heads = [f"{n} GPU{'s' * (n > 1)}" for n in counts]
    lines = [("hours", "".join(f"{head:>9}" for head in heads) + f"{'images/s':>12}" + f"{'cores':>8}" * on_disk)]
    for name, gpu in GPUS.items():
        rate = speed(recipe, plan.cost, gpu)
        if not rate or needed > gpu.memory * GIB:
            lines.append((f"  {name}", f"  {f'a lane needs more than {gpu.memory} GiB' if rate else 'has no bf16'}"))
        else:
            lines.append(row(name, rate, plan.cost.forward / plan.cost.training))
    if on_disk:
        lines.append(row(f"{recipe.data.workers} workers", core * max(recipe.data.workers, 1), 1.0))
    rules = [
        f"GPUs at {MFU:.0%} of their {precision_name(recipe)} peak, "
        f"a lane in no less than {LAUNCHES * 1e3:g} ms (assumptions)"
    ]
    if on_disk:
        name = pipeline_name(recipe)
        rules.append(f"cores and workers at {core:.0f} images/s each: {name} on ImageNet (an estimate)")
        rules.append("the slower of GPU and workers sets the pace; images/s and cores are for one GPU")
    return lines + [("", rule) for rule in rules]


def _bytes(number: float) -> str:
    return f"{number / GIB:,.2f} GiB" if number >= GIB else f"{number / 2**20:,.2f} MiB"
