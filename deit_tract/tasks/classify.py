"""Image classification: a lane's batch to its loss, an evaluation batch to counts of right answers."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from deit_tract import tract
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.resident import Resident
from deit_tract.data.sets.load import load_splits
from deit_tract.data.transforms import augment, fast, mix
from deit_tract.evaluators.classification import count_right, summarize
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.recipe.settings.recipe import Recipe


class Classify:
    """What training needs to know of the task: data, model, loss, metrics.

    `bare` is the model without wrappers; `loss` runs the wrapped one that the loop hands in.
    """

    headline = "top1"  # the metric that decides which evaluation is the best
    collate = staticmethod(default_collate)

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.train_data, self.val_data = load_splits(recipe.data)
        if recipe.data.resident:
            self.train_data = Resident(self.train_data, recipe, recipe.augment)
            self.val_data = Resident(self.val_data, recipe)
        self.train_transform, self.eval_transform = (
            augment.TrainTransform(recipe),
            augment.eval_transform(recipe),
        )
        if recipe.data.pipeline == "fast":
            self.train_data, self.train_transform = fast.pipeline(recipe, self.train_data)
        self.bare = build_model(recipe)
        self.drop_paths = [layer for layer in self.bare.modules() if isinstance(layer, DropPath)]
        self.tract_layers = [layer for _, layer in tract.find(self.bare)]
        soft_ce = partial(F.cross_entropy, label_smoothing=recipe.loss.smoothing)
        self.criterion = {"bce": thresholded_bce, "ce": soft_ce}[recipe.loss.name]

    def loss(self, model: nn.Module, batch: list[Tensor], seed: int) -> dict[str, Tensor]:
        """One lane, its draws from `seed`: {"loss": mean over the lane}. batch: images (b, c, h, w), labels (b,)."""
        return self.together(model, [batch], [seed])

    def together(
        self, model: nn.Module, batches: list[list[Tensor]], seeds: list[int]
    ) -> dict[str, Tensor]:
        """Lanes of one size in one forward, each with its own draws and TrAct Gram matrix: the mean over all."""
        mixed = [self._mixed(*pair) for pair in zip(batches, seeds, strict=True)]
        images, targets = (
            mixed[0]
            if len(mixed) == 1
            else (torch.cat(parts) for parts in zip(*mixed, strict=True))
        )
        drops = [derive(seed, "drop_path") for seed in seeds]
        draw_drop_path(self.drop_paths, len(images) // len(seeds), drops, images.device)
        for layer in self.tract_layers:
            layer.lanes = len(seeds)
        # for models that draw by themselves, whose lanes never share a forward
        seed_generators(derive(seeds[0], "dropout"), images.device)
        return {"loss": self.criterion(model(images).float(), targets)}

    def _mixed(self, batch: list[Tensor], seed: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        draw = mix.draw(self.recipe.mix, *images.shape[-2:], seed=derive(seed, "mix"))
        return mix.apply(draw, images, labels, self.recipe.data.classes)

    def evaluate(self, model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor]:
        """Sums over a batch, to be added over batches and processes."""
        images, labels = batch
        return count_right(model(images).float(), labels)

    def summarize(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums over all samples to metrics: top-1 and top-5 in percent, cross-entropy."""
        return summarize(sums)

    def report(self, sums: dict[str, float], folder) -> None:
        """There is nothing to show beside the metrics."""


def thresholded_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, every class with a positive target counted as fully present (DeiT-III --bce-loss).

    Mean over samples and classes; a mixed image has at most two positives.
    """
    return F.binary_cross_entropy_with_logits(logits, targets.gt(0).to(logits.dtype))
