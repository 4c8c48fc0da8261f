"""The first lines of a run: its folder, model, data, what runs where, and what to look at twice."""

import os
from collections.abc import Iterator
from typing import Any

import torch

from deit_tract.common.text import plural
from deit_tract.plan.remarks import remarks
from deit_tract.recipe.launch import lanes_of


def start_lines(run: Any) -> Iterator[str]:
    """The lines of a run that is about to train: a `Run` of loop.py, which imports this file."""
    recipe = run.recipe
    begin = "a new run"
    if run.step:
        begin = f"resumes from step {run.step:,}"
    elif run.origin:
        begin = f"starts from {run.origin}"
    length = f"{run.total:,} steps, {run.stream.steps_per_epoch:,} an epoch"
    yield f"{recipe.name} in {run.folder}: {begin}; {length}"
    yield f"model: {_model(run)}"
    train_images = len(run.task.source.images)
    val_images = len(run.evaluators[0].source.images)
    place = f" in {recipe.data.dir}" if recipe.data.dir else ""
    counts = f"{train_images:,} training and {val_images:,} validation images{place}"
    yield f"data: {recipe.data.name}, {counts}; {plural(recipe.data.workers, 'loader')} per process"
    yield f"machine: {_machine(run)}"
    for name, tracker in zip(recipe.log.trackers, run.log.trackers, strict=False):
        yield f"{name}: {tracker.place}"
    device = run.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for remark in remarks(recipe, run.stream.steps_per_epoch, name):
        yield f"note: {remark}"
    if _too_many_loaders(recipe.data.workers, run.accelerator.num_processes):
        cores = plural(len(os.sched_getaffinity(0)), "core")
        yield f"note: data.workers {recipe.data.workers} per process on {cores}: fewer are as fast"


def _model(run: Any) -> str:
    model = run.recipe.model
    parameters = sum(p.numel() for p in run.task.model.parameters())
    trained = "" if model.train == "all" else f" (trained: {model.train})"
    tract = f"TrAct {model.tract:g}" if model.tract else "no TrAct"
    return f"{model.name}, {parameters:,} parameters{trained}, {tract}"


def _machine(run: Any) -> str:
    """Processes, device, engine, precision, and how the lanes are shared out."""
    accelerator = run.accelerator
    device = accelerator.device
    processes = accelerator.num_processes
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    on = f"{plural(processes, 'process', 'processes')} on {kind}"
    if accelerator.deepspeed_plugin is not None:
        on += f", DeepSpeed at ZeRO stage {accelerator.deepspeed_plugin.zero_stage}"
    batch = run.recipe.batch
    lanes = f"{plural(batch.lanes, 'lane')} of {plural(batch.lane_size, 'image')}"
    if processes > 1:
        counts = {len(lanes_of(rank, processes, batch.lanes)) for rank in range(processes)}
        lanes += f", {' or '.join(map(str, sorted(counts)))} per process"
    together = max(map(len, run.forwards))
    if together > 1:
        lanes += f", {together} in a forward pass"
    return f"{on}, {run.recipe.precision.autocast or 'float32'}; {lanes}"


def _too_many_loaders(workers: int, processes: int) -> bool:
    """Whether the loaders of this machine's processes outnumber its cores."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return workers * here > len(os.sched_getaffinity(0))
