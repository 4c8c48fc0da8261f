"""Image classification: lanes of images and labels to their loss."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_tract import tract
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.resident import Resident
from deit_tract.data.transforms import augment, fast, mix
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.recipe.settings.recipe import Recipe


class Classify:
    """The task of learning one class per image."""

    def __init__(self, recipe: Recipe, images: Dataset):
        self.recipe = recipe
        self.source = train_source(recipe, images)
        self.model = build_model(recipe)
        self.drop_paths = [layer for layer in self.model.modules() if isinstance(layer, DropPath)]
        self.tract_layers = [layer for _, layer in tract.find(self.model)]
        soft_ce = partial(F.cross_entropy, label_smoothing=recipe.loss.smoothing)
        self.criterion = {"bce": thresholded_bce, "ce": soft_ce}[recipe.loss.name]

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
        return {"loss": self.criterion(model(images).float(), targets)}

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


def thresholded_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with every positive target as fully present (DeiT-III --bce-loss).

    Mean over samples and classes; a mixed image has at most two positives.
    """
    return F.binary_cross_entropy_with_logits(logits, targets.gt(0).to(logits.dtype))
