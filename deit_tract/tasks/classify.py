"""Image classification: lanes of images and labels to their loss."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.common.text import listed
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.resident import Resident
from deit_tract.data.transforms import augment, fast, mix
from deit_tract.models.build import build_model
from deit_tract.models.checkpointing import forward_pass
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.recipe.settings.recipe import Loss, Recipe


class Classify:
    """The task of learning one class per image."""

    def __init__(self, recipe: Recipe, images: Dataset):
        self.recipe = recipe
        self.source = train_source(recipe, images)
        self.model = build_model(recipe)
        self.drop_paths = [layer for layer in self.model.modules() if isinstance(layer, DropPath)]
        self.tract_layers = [layer for _, layer in tract.find(self.model)]
        self.forward_pass = forward_pass(self.model, recipe.model.checkpointing)
        self.criterion = build_criterion(recipe.loss, images)

    def loss(self, model: nn.Module, batches: list[Batch], seeds: list[int]) -> dict[str, Tensor]:
        """{"loss": mean over all lanes}; each lane has its own draws and TrAct Gram matrix.

        batches: {"image": (b, c, h, w), "label": (b,)} per lane.
        """
        images, targets = self._mixed(batches, seeds)
        drops = [derive(seed, "drop_path") for seed in seeds]
        draw_drop_path(self.drop_paths, len(images) // len(seeds), drops, images.device)
        for layer in self.tract_layers:
            layer.lanes = len(seeds)
        # for models that draw by themselves, whose lanes never share a forward
        seed_generators(derive(seeds[0], "dropout"), images.device)
        with self.forward_pass():
            logits = model(images)
        return {"loss": self.criterion(logits.float(), targets)}

    def _mixed(self, batches: list[Batch], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Images and soft targets of all lanes, each lane mixed by itself."""
        lanes = []
        for batch, seed in zip(batches, seeds, strict=True):
            images = batch["image"]
            draw = mix.draw(self.recipe.mix, *images.shape[-2:], seed=derive(seed, "mix"))
            lanes.append(mix.apply(draw, images, batch["label"], self.recipe.data.classes))
        if len(lanes) == 1:
            return lanes[0]
        images, targets = zip(*lanes, strict=True)
        return torch.cat(images), torch.cat(targets)


def train_source(recipe: Recipe, images: Dataset) -> Source:
    """Training batches by the pipeline that the recipe asks for."""
    if recipe.data.resident:
        return Source(Resident(images, recipe, recipe.augment))
    if recipe.data.pipeline == "fast":
        return Source(*fast.pipeline(recipe, images))
    return Source(images, augment.TrainTransform(recipe))


def build_criterion(loss: Loss, images: Dataset) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of logits (b, classes) and soft targets (b, classes)."""
    if loss.name == "bce":
        return thresholded_bce
    weights = None if loss.class_weights is None else class_weights(loss.class_weights, images)
    return SoftCrossEntropy(loss.smoothing, weights)


class SoftCrossEntropy:
    """Cross-entropy with soft targets, mean over samples; each class has its weight, if given."""

    def __init__(self, smoothing: float, weights: Tensor | None):
        self.smoothing, self.weights = smoothing, weights

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)
        return F.cross_entropy(logits, targets, self.weights, label_smoothing=self.smoothing)


def class_weights(asked: list[float] | str, images: Dataset) -> Tensor:
    """Return the classes' weights (classes,): those asked for, or "inverse" to their images.

    These are images / (classes * images of the class): over the training images their mean is 1.
    Raises UserError if a class has no image.
    """
    if asked != "inverse":
        return torch.tensor(asked)
    classes = len(images.classes)
    counts = np.bincount(images.labels, minlength=classes)
    empty = [images.classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        what = f"no training image of {listed(empty)}"
        raise UserError("loss.class_weights", what, "give a list of weights, or set it to null")
    return torch.from_numpy(counts.sum() / (classes * counts)).float()


def thresholded_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with every positive target as fully present (DeiT-III --bce-loss).

    Mean over samples and classes; a mixed image has at most two positives.
    """
    return F.binary_cross_entropy_with_logits(logits, targets.gt(0).to(logits.dtype))
