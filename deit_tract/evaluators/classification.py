"""Image classification: top-1, top-5, cross-entropy; on request every image's predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.resident import Resident
from deit_tract.data.transforms import augment
from deit_tract.evaluators.measures import Samples
from deit_tract.recipe.settings.recipe import HEADLINES, Evaluate, Recipe


class Classification:
    """An evaluator of classifiers."""

    name = "classification"
    headline = HEADLINES["classify"]

    def __init__(self, source: Source, settings: Evaluate, workers: int, keep: bool = False):
        """keep: `samples` holds every image's predictions after an evaluation."""
        self.source = source
        self.settings = settings
        self.workers = workers
        self.keep = keep
        self.samples: Samples | None = None

    @classmethod
    def of_recipe(cls, recipe: Recipe, images: Dataset) -> "Classification":
        source = Source(images, augment.eval_transform(recipe))
        if recipe.data.resident:
            source = Source(Resident(images, recipe))
        return cls(source, recipe.evaluate, recipe.data.workers)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Sums over {"image": (b, c, h, w), "label": (b,)}."""
        logits = model(batch["image"]).float()
        labels = batch["label"]
        sums = count_right(logits, labels)
        return sums | ({"records": predictions(logits, labels)} if self.keep else {})

    def summarize(self, sums: dict[str, Any]) -> dict[str, float]:
        """Top-1 and top-5 in percent, cross-entropy."""
        if self.keep:
            self.samples = Samples(*map(np.array, zip(*sums["records"], strict=True)))
        count = sums["count"]
        return {
            "top1": 100 * sums["top1"] / count,
            "top5": 100 * sums["top5"] / count,
            "val_loss": sums["loss"] / count,
        }

    def report(self, sums: dict[str, Any], folder: Path) -> None:
        """There is nothing to show beside the metrics."""


def count_right(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over logits (b, classes): samples, right at first, among the best five, loss."""
    best = logits.topk(min(5, logits.shape[1])).indices == labels.unsqueeze(1)
    return {
        "count": labels.new_full((), len(labels)),
        "top1": best[:, 0].sum(),
        "top5": best.sum(),
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
    }


def predictions(logits: Tensor, labels: Tensor) -> list[tuple]:
    """Each sample's label, best five classes (5,) and confidence: a row of `measures.Samples`."""
    best = logits.topk(min(5, logits.shape[1])).indices
    confidence = logits.softmax(1).gather(1, best[:, :1])[:, 0]
    columns = (column.cpu().numpy() for column in (labels, best, confidence))
    return list(zip(*columns, strict=True))
