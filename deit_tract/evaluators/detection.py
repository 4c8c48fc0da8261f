"""Object detection: VOC's average precision, a table of the classes and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from deit_tract.common.colors import OKABE_ITO
from deit_tract.common.errors import UserError
from deit_tract.common.text import table
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.transforms.detection import ToSample
from deit_tract.evaluators.average_precision import (
    ClassPrecision,
    Detections,
    average_precision,
    mean_over_classes,
)
from deit_tract.recipe.settings.recipe import HEADLINES, Evaluate, Recipe

DRAWN = 0.5  # score from which a detection is drawn


class Detection:
    """An evaluator of detectors."""

    name = "detection"
    headline = HEADLINES["detect"]

    def __init__(self, images: Dataset, class_names: list[str], settings: Evaluate, workers: int):
        """images: Photos with `objects` per image."""
        self.source = Source(images, ToSample(), stacked=False)
        self.class_names = class_names
        self.settings = settings
        self.workers = workers
        self.precisions: list[ClassPrecision] = []  # per class, of the last evaluation

    @classmethod
    def of_recipe(cls, recipe: Recipe, images: Dataset) -> "Detection":
        return cls(images, recipe.detect.class_names, recipe.evaluate, recipe.data.workers)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The number of photos, and a record (index, boxes in pixels, labels, scores) of each.

        One photo after the other: together they would be padded, and what is found would depend on
        the batch.
        """
        records = []
        for image, index in zip(batch["image"], batch["index"], strict=True):
            found = model([image])[0]
            columns = (found[name].detach().float() for name in ("boxes", "labels", "scores"))
            records.append((int(index), *(column.cpu().numpy() for column in columns)))
        return {"count": torch.tensor(len(records)), "records": records}

    def summarize(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Mean average precision in percent, by 11 points (VOC07, the headline) and by area.

        A class without objects is null and not in the means. Raises UserError if no class has any.
        """
        found = gathered(sums["records"])
        objects = self.source.images.objects
        self.precisions = average_precision(found, objects, len(self.class_names))
        seven = [100 * precision.ap07 for precision in self.precisions]
        area = [100 * precision.area for precision in self.precisions]
        if not np.isfinite(seven).any():
            what = "the validation data has no object to find"
            raise UserError("evaluation", what, "choose another split")
        by_class = zip(self.class_names, seven, strict=True)
        return {
            "map07": mean_over_classes(seven),
            "map_area": mean_over_classes(area),
            "detections": sum(precision.detections for precision in self.precisions),
            "ap07": {name: None if np.isnan(value) else value for name, value in by_class},
        }

    def report(self, sums: dict[str, Any], folder: Path) -> None:
        """Write `classes.md`, and pictures of as many photos with detections as the settings say.

        Detections with a score of 0.5 and more are in colour with their scores, annotated objects
        are white.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.md").write_text(self.table(), encoding="utf-8")
        by_index = {record[0]: record for record in sums["records"]}
        photos = self.source.images
        for index in range(min(self.settings.pictures, len(photos))):
            photo, _ = photos[index]
            name = photos.ids[index] if hasattr(photos, "ids") else f"{index:06d}"
            picture = to_pil_image(drawn(photo, by_index[index], self.class_names))
            picture.save(folder / f"{name}.jpg", quality=90)

    def table(self) -> str:
        """The average precision of every class in the last evaluation as Markdown."""
        return class_table(self.class_names, self.precisions)


def gathered(records: list[tuple]) -> Detections:
    """Records of images, each once and in any order, as columns in the order of the images."""
    records = sorted(records, key=lambda record: record[0])
    indices = [record[0] for record in records]
    assert len(set(indices)) == len(indices), "an image was evaluated twice"
    boxes, labels, scores = (
        np.concatenate([record[column] for record in records] or [np.zeros(shape)])
        for column, shape in ((1, (0, 4)), (2, 0), (3, 0))
    )
    images = np.repeat(np.array(indices, np.int64), [len(record[2]) for record in records])
    return Detections(images, boxes, labels.astype(np.int64), scores)


def class_table(names: list[str], precisions: list[ClassPrecision]) -> str:
    """Average precision in percent of every class as a Markdown table, the means last."""
    seven, area, objects, detections = zip(*precisions, strict=True)
    means = (mean_over_classes(seven), mean_over_classes(area))
    mean = ClassPrecision(*means, sum(objects), sum(detections))
    rows = [
        (name, _percent(row.ap07), _percent(row.area), f"{row.objects:,}", f"{row.detections:,}")
        for name, row in zip((*names, "mean"), (*precisions, mean), strict=True)
    ]
    columns = ("class", "AP 07", "AP area", "objects", "detections")
    return table(columns, rows, right=columns[1:]) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if np.isfinite(value) else "-"


def drawn(photo, record: tuple, names: list[str]) -> Tensor:
    """A photo (3, h, w) uint8 with its objects and the detections on it."""
    image = pil_to_tensor(photo.image)
    objects = photo.objects
    _, boxes, labels, scores = record
    shown = np.flatnonzero(scores >= DRAWN)
    if len(objects.boxes):
        image = draw_bounding_boxes(image, objects.boxes, colors="white", width=1)
    if not len(shown):
        return image
    texts = [f"{names[int(labels[place]) - 1]} {scores[place]:.2f}" for place in shown]
    colors = [OKABE_ITO[int(labels[place]) % len(OKABE_ITO)] for place in shown]
    return draw_bounding_boxes(image, torch.from_numpy(boxes[shown]), texts, colors, width=2)
