"""Image classification for an evaluation alone: the same numbers as in training, and what each image got."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from deit_tract.measures import Samples
from deit_tract.tasks import classify


class Predictions:
    """What `evaluate` needs to know of a task, without the training data and the loss.

    `done` is told after each batch how many samples it had.
    """

    headline, collate = classify.Classify.headline, staticmethod(default_collate)

    def __init__(self, val_data: Dataset, eval_transform: Callable, done: Callable[[int], object] = lambda count: None):
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
        return classify.count_right(logits, labels)

    def summarize(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums over all samples to metrics: count, top-1 and top-5 in percent, cross-entropy."""
        return {"count": int(sums["count"])} | classify.summarize(sums)

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
