"""Exact evaluation: every sample counted once, whatever the number of processes."""

import torch
from accelerate import Accelerator
from torch import nn

from deit_tract.data.stream import View, Views, checked, loader
from deit_tract.models import autocast
from deit_tract.schema import Recipe


@torch.inference_mode()
def evaluate(task, model: nn.Module, recipe: Recipe, accelerator: Accelerator) -> dict[str, float]:
    """The task's metrics of a bare model over the validation data, the same on every process.

    Process r takes samples r, r + processes, ...; nothing is padded, the sums are added.
    """
    count, size, device = len(task.val_data), recipe.evaluate.batch_size, accelerator.device
    mine = range(accelerator.process_index, count, accelerator.num_processes)
    batches = [[View(index, 0) for index in mine[first : first + size]] for first in range(0, len(mine), size)]
    data = loader(Views(task.val_data, task.eval_transform), batches, recipe.data.workers, device.type == "cuda")
    names, total = [], torch.zeros(0)
    was_training = model.training
    model.eval()
    for batch in checked(data):
        with autocast(recipe, device):
            sums = task.evaluate(model, [tensor.to(device, non_blocking=True) for tensor in batch])
        names, values = list(sums), torch.stack([value.float() for value in sums.values()])
        total = values if not len(total) else total + values
    model.train(was_training)
    return task.summarize(_add_up(names, total, accelerator, count))


def _add_up(names: list[str], total: torch.Tensor, accelerator: Accelerator, count: int) -> dict[str, float]:
    """Sums over processes, of which some may have had no sample; every sample must be in them once."""
    shares = [None] * accelerator.num_processes
    mine = dict(zip(names, total.tolist(), strict=True))
    if accelerator.num_processes > 1:
        torch.distributed.all_gather_object(shares, mine)
    else:
        shares = [mine]
    sums: dict[str, float] = {}
    for share in shares:
        for name, value in share.items():
            sums[name] = sums.get(name, 0.0) + value
    assert sums["count"] == count, f"evaluated {sums['count']} of {count} samples"
    return sums
