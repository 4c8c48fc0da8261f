"""Exact evaluation: every sample counted once, whatever the number of processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.data.feed import make_feed
from deit_tract.data.stream import Once
from deit_tract.evaluators.evaluator import Evaluator
from deit_tract.models.precision import evaluating


def start_processes(precision: str) -> Accelerator:
    """The Accelerator of an evaluation by itself. UserError if its device lacks the precision."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision", "fp16 needs a CUDA GPU", "give --precision float32 or bf16")
    return Accelerator(cpu=not torch.accelerator.is_available())  # `evaluating` casts


def evaluate(
    evaluator: Evaluator,
    model: nn.Module,
    accelerator: Accelerator,
    precision: str | None,
    folder: Path | None = None,
    progress: Callable[[int], object] = lambda samples: None,
) -> dict[str, Any]:
    """An evaluator's metrics of a model without wrappers, the same on every process.

    Process r takes samples r, r + processes, ...; nothing is padded. precision: "bf16", "fp16", or
    None for float32. `folder` takes the evaluator's report, `progress` is told the number of
    samples after each batch.
    """
    count = len(evaluator.source.images)
    rank = accelerator.process_index
    order = Once(count, accelerator.num_processes, evaluator.settings.batch_size)
    feed = make_feed(evaluator.source, order, [rank], evaluator.workers, accelerator.device)
    totals: dict[str, Tensor] = {}
    records: list = []
    with evaluating(model, precision, accelerator.device) as forward_pass:
        for batch in feed.batches(range(order.steps(rank))):
            with forward_pass():
                sums = evaluator.measure(model, batch)
            records += sums.pop("records", [])
            for name, value in sums.items():
                totals[name] = totals[name] + value.float() if name in totals else value.float()
            progress(len(batch["image"]))
    sums = _added_up(totals, accelerator)
    sums["records"] = in_order(_shares(records, accelerator))
    assert sums["count"] == count, f"evaluated {sums['count']} of {count} samples"
    metrics = evaluator.summarize(sums)
    if folder is not None and accelerator.is_main_process:
        evaluator.report(sums, folder)
    return metrics


def _added_up(totals: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Any]:
    """Sums over processes, some of which may have had no sample."""
    values = torch.stack([*totals.values()]).tolist() if totals else []
    sums: dict[str, float] = {}
    for share in _shares(dict(zip(totals, values, strict=True)), accelerator):
        for name, value in share.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def in_order(shares: list[list]) -> list:
    """All processes' records in the data set's order; r has those of r, r + processes, ..."""
    records: list = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        records[rank :: len(shares)] = share
    return records


def _shares(mine: Any, accelerator: Accelerator) -> list:
    """What each process hands in, process 0's first, on every process."""
    everyone = [mine] * accelerator.num_processes
    if accelerator.num_processes > 1:
        torch.distributed.all_gather_object(everyone, mine)
    return everyone
