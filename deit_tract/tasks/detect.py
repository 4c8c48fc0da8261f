"""Detection: a lane's photos to the losses of Faster R-CNN, an evaluation to VOC's average precision and pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.sets.load import load_splits
from deit_tract.data.transforms.detection import ToSample
from deit_tract.evaluators import average_precision
from deit_tract.evaluators.detection import drawn, gathered, table
from deit_tract.models.build import build_model
from deit_tract.recipe.settings.recipe import Recipe

Batch = list[list]  # of two lists: images (3, h, w) of any sizes, and their targets


class Detect:
    """What training needs to know of the task: data, model, loss, metrics. The same surface as `Classify`."""

    headline = "map07"

    def __init__(self, recipe: Recipe, val_data: Dataset | None = None):
        """val_data: for an evaluation of these photos alone, without training data and a model of its own."""
        self.recipe, self.val_data, self.eval_transform = recipe, val_data, ToSample()
        self.precisions: list[
            average_precision.ClassPrecision
        ] = []  # of the classes, at the last evaluation
        if val_data is None:
            self.train_data, self.val_data = load_splits(recipe.data, recipe.detect)
            self.train_transform = ToSample(recipe.augment.flip, difficult=False)
            self.bare = build_model(recipe)

    @staticmethod
    def collate(samples: list) -> Batch:
        """Photos have different sizes: lists, not a tensor."""
        images, _, targets = zip(*samples, strict=True)
        return [list(images), list(targets)]

    def loss(self, model: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
        """One lane, the sampling of anchors and proposals from `seed`: {"loss": their sum, and the four of them}."""
        images, targets = batch
        seed_generators(
            derive(seed, "sample"), images[0].device
        )  # torchvision's samplers draw by themselves
        losses = model(images, targets)
        return {"loss": sum(losses.values())} | losses

    def evaluate(self, model: nn.Module, batch: Batch) -> dict:
        """Number of images, and of each (index, boxes, labels, scores) with the boxes in pixels of the photo.

        One image after the other: together they would be padded, and what is found would depend on the batch.
        """
        records = []
        for image, target in zip(*batch, strict=True):
            found = model([image])[0]
            arrays = [
                found[name].detach().float().cpu().numpy() for name in ("boxes", "labels", "scores")
            ]
            records.append((int(target["index"]), *arrays))
        return {"count": torch.tensor(len(records)), "records": records}

    def summarize(self, sums: dict) -> dict:
        """Mean average precision in percent, by 11 points (VOC07, the headline) and by area, and that of each class.

        A class without objects is null and not in the means. Raises UserError where no class has any.
        """
        precisions = self.precisions = self._precisions(sums["records"])
        seven = [100 * precision.ap07 for precision in precisions]
        area = [100 * precision.area for precision in precisions]
        if not np.isfinite(seven).any():
            raise UserError(
                "evaluation", "the validation data has no object to find", "choose another split"
            )
        by_class = {
            name: None if np.isnan(value) else value
            for name, value in zip(self.names, seven, strict=True)
        }
        found = sum(precision.detections for precision in precisions)
        return {
            "map07": average_precision.mean_over_classes(seven),
            "map_area": average_precision.mean_over_classes(area),
            "detections": found,
            "ap07": by_class,
        }

    @property
    def names(self) -> list[str]:
        return self.recipe.detect.class_names

    def _precisions(self, records: list) -> list[average_precision.ClassPrecision]:
        return average_precision.average_precision(
            gathered(records), self.val_data.objects, len(self.names)
        )

    def report(self, sums: dict, folder: Path) -> None:
        """Write `classes.md` into a folder and, as the recipe wants, pictures of the first photos with detections.

        Found boxes of score 0.5 and more are in colour with their scores, the annotated ones white.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.md").write_text(
            table(self.names, self._precisions(sums["records"])), encoding="utf-8"
        )
        by_index = {record[0]: record for record in sums["records"]}
        for index in range(min(self.recipe.evaluate.pictures, len(self.val_data))):
            photo, _ = self.val_data[index]
            name = self.val_data.ids[index] if hasattr(self.val_data, "ids") else f"{index:06d}"
            to_pil_image(drawn(photo, by_index[index], self.names)).save(
                folder / f"{name}.jpg", quality=90
            )
