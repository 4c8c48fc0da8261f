"""Image classification for an evaluation alone: the same numbers as in training, and what each image got."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from deit_tract.evaluators.measures import Samples


def count_right(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over a batch: samples, right at first, right among the best five, cross-entropy. logits: (b, classes)."""
    best = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return {
        "count": labels.new_full((), len(labels)),
        "top1": best[:, 0].sum(),
        "top5": best.sum(),
        "loss": loss,
    }


def summarize(sums: dict[str, float]) -> dict[str, float]:
    """What `count_right` gave, added up, as metrics."""
    count = sums["count"]
    return {
        "top1": 100 * sums["top1"] / count,
        "top5": 100 * sums["top5"] / count,
        "val_loss": sums["loss"] / count,
    }


class Predictions:
    """What `evaluate` needs to know of a task, without the training data and the loss.

    `done` is told after each batch how many samples it had.
    """

    headline, collate = "top1", staticmethod(default_collate)

    def __init__(
        self,
        val_data: Dataset,
        eval_transform: Callable,
        done: Callable[[int], object] = lambda count: None,
    ):
        self.val_data, self.eval_transform, self.done = val_data, eval_transform, done
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def evaluate(self, model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor]:
        """Sums over a batch; keeps each sample's label, best classes and confidence."""
        images, labels = batch
        logits = model(images).float()
        best = logits.topk(min(5, logits.shape[1])).indices
        confidence = logits.softmax(1).gather(1, best[:, :1])[:, 0]
        self._kept.append((labels.cpu(), best.cpu(), confidence.cpu()))
        self.done(len(labels))
        return count_right(logits, labels)

    def summarize(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums over all samples to metrics: count, top-1 and top-5 in percent, cross-entropy."""
        return {"count": int(sums["count"])} | summarize(sums)

    def kept(self) -> list[np.ndarray]:
        """What this process has seen, in its order: labels, best classes, confidences; empty if it had no sample."""
        return [torch.cat(parts).numpy() for parts in zip(*self._kept, strict=True)]


def in_order(shares: list[list[np.ndarray]]) -> Samples:
    """What all processes have kept, in the data set's order: process r saw samples r, r + processes, ..."""
    columns = []
    for parts in zip(*filter(None, shares), strict=True):
        whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        for rank, part in enumerate(parts):
            whole[rank :: len(shares)] = part
        columns.append(whole)
    return Samples(*columns)
