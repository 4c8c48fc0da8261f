"""Exact evaluation: every sample counted once, whatever the number of processes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from deit_tract.data import resident
from deit_tract.data.loader import checked
from deit_tract.data.stream import View
from deit_tract.models.precision import autocast
from deit_tract.recipe.settings.recipe import Recipe


def evaluate(
    task, model: nn.Module, recipe: Recipe, accelerator: Accelerator, folder: Path | None = None
) -> dict[str, float]:
    """The task's metrics of a bare model over the validation data, the same on every process.

    `folder` takes what the task has to show beside them.
    """
    cast = partial(autocast, recipe, accelerator.device)
    return evaluate_by(
        task, model, accelerator, recipe.evaluate.batch_size, recipe.data.workers, cast, folder
    )


@torch.inference_mode()
def evaluate_by(
    task,
    model: nn.Module,
    accelerator: Accelerator,
    size: int,
    workers: int,
    cast: Callable[[], Any],
    folder: Path | None = None,
) -> dict[str, float]:
    """`evaluate` without a recipe: batches of `size` samples from so many loader workers, each in a context `cast()`.

    Process r takes samples r, r + processes, ...; nothing is padded, the sums are added, the records joined.
    """
    count, device = len(task.val_data), accelerator.device
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    batches = [
        [View(index, 0) for index in mine[first : first + size]]
        for first in range(0, len(mine), size)
    ]
    data = resident.batches(
        task.val_data, task.eval_transform, False, batches, workers, device, task.collate
    )
    names, total, records = [], torch.zeros(0), []
    was_training = model.training
    model.eval()
    for batch in checked(data):
        # a compiled model would be compiled again, for this mode and the last batch's size
        with cast(), torch.compiler.set_stance("force_eager"):
            sums = task.evaluate(model, send_to_device(batch, device, non_blocking=True))
        records += sums.pop("records", [])
        names, values = list(sums), torch.stack([value.float() for value in sums.values()])
        total = values if not len(total) else total + values
    model.train(was_training)
    mine = dict(zip(names, total.tolist(), strict=True)) | {"records": records}
    sums = _add_up(mine, accelerator, count)
    if folder is not None and accelerator.is_main_process:
        task.report(sums, folder)
    return task.summarize(sums)


def _add_up(mine: dict, accelerator: Accelerator, count: int) -> dict:
    """Sums over processes, of which some may have had no sample; every sample must be in them once."""
    sums: dict = {}
    for share in shares(mine, accelerator):
        for name, value in share.items():
            sums[name] = sums[name] + value if name in sums else value
    assert sums["count"] == count, f"evaluated {sums['count']} of {count} samples"
    return sums


def shares(mine: Any, accelerator: Accelerator) -> list:
    """What each process hands in, process 0's first, on every process."""
    everyone = [mine] * accelerator.num_processes
    if accelerator.num_processes > 1:
        torch.distributed.all_gather_object(everyone, mine)
    return everyone
