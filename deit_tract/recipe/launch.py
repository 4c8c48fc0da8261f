"""What a launch must satisfy for a recipe.

The run, `--plan`, `--plan --gpus N` and tools/submit.py all ask here: what one of them refuses,
the others refuse in the same words.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.recipe.describe import differences
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Batch, Recipe

# 0.18.x of DeepSpeed computes wrong or missing gradients at stage 2, depending on the patch release
OLDEST_DEEPSPEED = Version("0.19")
MOST_SHARES = 2**16  # equal shares are listed up to that many processes

Problem = tuple[str, str, str]  # where, what, what instead


class Device(NamedTuple):
    """What a device can do, as far as a recipe depends on it."""

    has_cuda: bool = True
    has_bf16: bool = True
    name: str = ""


ABLE = Device()  # what a device that is not known counts as


@dataclass(frozen=True)
class Launch:
    """How a run is started, in plain facts."""

    processes: int = 1
    zero_stage: int | None = None  # None: without DeepSpeed
    device: Device = ABLE


# ---- reading ---------------------------------------------------------------------------------


def read_launch(environment: Mapping[str, str], device: Device = ABLE) -> Launch:
    """The launch that the variables of torchrun and Accelerate describe.

    Raises UserErrors for launcher options that the recipe controls or that are not supported.
    """
    errors = [UserError("launch", *problem) for problem in _unsupported(environment)]
    if errors:
        raise UserErrors(errors)
    processes = int(environment.get("WORLD_SIZE", 1))
    return Launch(processes, zero_stage(environment), device)


def zero_stage(environment: Mapping[str, str]) -> int | None:
    """The stage of `accelerate launch --use_deepspeed --zero_stage N`; None without DeepSpeed."""
    return int(_stage(environment)) if _uses(environment, "DEEPSPEED") else None


def _uses(environment: Mapping[str, str], engine: str) -> bool:
    return environment.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _stage(environment: Mapping[str, str]) -> str:
    return environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")


def _unsupported(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Launcher options that no recipe can have: (what, what instead)."""
    for engine in ("FSDP", "MEGATRON_LM"):
        if _uses(environment, engine):
            yield f"{engine} is not supported", "launch with DDP or DeepSpeed"
    single = "WORLD_SIZE" not in environment
    if single and {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= environment.keys():
        what = "accelerate launch was asked for several processes and started one"
        instead = "on CPUs use torchrun --nproc_per_node N, or unset MASTER_PORT for one process"
        yield f"{what}, as it does with --cpu", instead
    if not _uses(environment, "DEEPSPEED"):
        return
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none").lower() != "none":
        what = "a DeepSpeed config file is given, but the recipe decides what is in it"
        yield what, "give only --zero_stage"
    for part in ("OPTIMIZER", "PARAM"):
        device = environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none")
        if device.lower() != "none":
            yield f"offloading of {part.lower()} is not supported", "set it to none"
    if _stage(environment) not in ("0", "1", "2", "3"):
        yield f"ZeRO stage {_stage(environment)}", "choose 0, 1, 2 or 3"


# ---- the rules -------------------------------------------------------------------------------


def check_launch(recipe: Recipe, launch: Launch) -> None:
    """Raise UserErrors with every problem that the recipe has with the launch."""
    problems = launch_problems(recipe, launch)
    if problems:
        raise UserErrors(problems)


def launch_problems(recipe: Recipe, launch: Launch) -> list[UserError]:
    """Every reason why the recipe cannot be run by the launch; `precision.autocast` is resolved."""
    problems = [*_shares(recipe.batch, launch), *_precision(recipe, launch.device)]
    problems += [*_dropped_blocks(recipe, launch.processes), *_trackers(recipe)]
    if launch.zero_stage is not None:
        problems += [*_deepspeed(recipe, launch.zero_stage), *_deepspeed_version()]
    return [UserError(*problem) for problem in problems]


def _shares(batch: Batch, launch: Launch) -> Iterator[Problem]:
    processes, lanes = launch.processes, batch.lanes
    if processes > lanes:
        larger = f"--set batch.lanes={processes} --set batch.size={processes * batch.lane_size}"
        others = [f"{larger} (a larger batch)"]
        if batch.size % processes == 0:
            smaller = f"lanes of {batch.size // processes} images"
            others.insert(0, f"--set batch.lanes={processes} ({smaller})")
        instead = f"start at most {lanes} ({', '.join(_even_shares(lanes))}: equal shares)"
        instead += f", or change the experiment: {' or '.join(others)}"
        yield "launch", f"{processes} processes for batch.lanes {lanes}", instead
    elif launch.zero_stage is not None and lanes % processes:
        what = f"{lanes} lanes do not divide over {processes} processes, as DeepSpeed needs"
        *fewer, most = _even_shares(lanes)
        yield "launch", what, f"start {', '.join(fewer)} or {most}"


def _even_shares(lanes: int) -> list[str]:
    """Numbers of processes that each compute as many lanes."""
    return [str(n) for n in range(1, min(lanes, MOST_SHARES) + 1) if lanes % n == 0]


def _precision(recipe: Recipe, device: Device) -> Iterator[Problem]:
    autocast = recipe.precision.autocast
    if autocast == "fp16" and not device.has_cuda:
        yield "precision.autocast", "fp16 needs a CUDA GPU", "use bf16, or null for float32"
    if autocast == "bf16" and device.has_cuda and not device.has_bf16:
        yield "precision.autocast", f"{device.name} has no bf16", "use fp16"


def _dropped_blocks(recipe: Recipe, processes: int) -> Iterator[Problem]:
    """A block that a lane drops has no gradient there: others would wait for it, or add a zero."""
    net = str(recipe.model.args.get("net"))
    if recipe.model.name != "cifar_net" or not net.startswith("stochasticdepth"):
        return
    if processes > 1:
        yield "launch", f"{net} drops blocks, which {processes} processes cannot", "start one"
    if recipe.batch.exact:
        yield "batch.exact", f"{net} drops blocks, whose weights would move", "set it to false"


def _trackers(recipe: Recipe) -> Iterator[Problem]:
    """Trackers that are not installed: Accelerate would silently ignore them."""
    for tracker in recipe.log.trackers:
        if find_spec(tracker) is None:
            yield "log.trackers", f"{tracker} is not installed", f"pip install {tracker}"


def _deepspeed(recipe: Recipe, stage: int) -> Iterator[Problem]:
    """What DeepSpeed cannot do exactly; from ZeRO stage 1 on, tensors are cut up."""
    cuts = f"which ZeRO stage {stage} cuts up"
    whole_tensors = OPTIMIZERS[recipe.optim.name].whole_tensors
    if recipe.task == "detect":
        what = "DeepSpeed is not supported for task detect"
        yield "launch", what, "launch without it: the model is small"
    if whole_tensors and stage > 0:
        other = ", ".join(name for name, row in OPTIMIZERS.items() if not row.whole_tensors)
        instead = f"use --zero_stage 0, or one of optim.name {other}"
        yield "launch", f"{whole_tensors} needs whole tensors, {cuts}", instead
    if recipe.optim.first_layer is not None:
        yield "optim.first_layer", "DeepSpeed takes one optimizer", "launch without DeepSpeed"
    if recipe.model.tract_gram == "batch" and stage > 0:
        what = f"the batch's Gram matrix needs the complete gradient, {cuts}"
        yield "model.tract_gram", what, "use lane, or --zero_stage 0"
    if recipe.precision.autocast == "fp16":
        what = "fp16 under DeepSpeed is not supported"
        yield "precision.autocast", what, "use bf16, or launch with DDP"
    if recipe.precision.compile:
        what = "not supported under DeepSpeed"
        yield "precision.compile", what, "set it to false, or launch with DDP"
    if recipe.batch.lanes_per_forward not in ("auto", 1):
        what = "DeepSpeed counts lanes as forward passes"
        yield "batch.lanes_per_forward", what, "set it to 1 or auto, or launch with DDP"
    if recipe.batch.exact:
        yield "batch.exact", "DeepSpeed sums gradients in its own order", "launch without DeepSpeed"


def _deepspeed_version() -> Iterator[Problem]:
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        yield "launch", "DeepSpeed is not installed", "pip install -r requirements.txt"
        return
    if Version(version) < OLDEST_DEEPSPEED:
        what = f"DeepSpeed {version} is too old: 0.18 has wrong gradients at stage 2"
        yield "launch", what, f"install {OLDEST_DEEPSPEED} or later"


# ---- what follows from a launch --------------------------------------------------------------


def lanes_of(rank: int, processes: int, lanes: int) -> range:
    """The lanes that a process computes, one after another: rank, rank + processes, ..."""
    return range(rank, lanes, processes)


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise UserError if the folder holds a run of another recipe.

    What a start left that failed before its first result is no run.
    """
    path = folder / "recipe.yaml"
    there = path.exists() and _holds_results(folder)
    changed = differences(load_recipe(str(path)), recipe) if there else []
    if changed:
        what = f"holds a run of another recipe ({'; '.join(changed)})"
        raise UserError(folder, what, "choose another --output, or put the values back")


def _holds_results(folder: Path) -> bool:
    """Whether a folder has a checkpoint, metrics, or the weights of an export."""
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size > 0:
        return True
    return any(folder.glob("checkpoints/step_*")) or any(folder.glob("model.safetensors"))
