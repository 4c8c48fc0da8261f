"""A detector's evaluation: what was found on each photo, as a table and as pictures."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import draw_bounding_boxes

from deit_tract.evaluators import average_precision

DRAWN = 0.5  # score from which a detection is drawn


def gathered(records: list) -> average_precision.Detections:
    """Records of images, each once and in any order, as columns in the order of the images."""
    records = sorted(records, key=lambda record: record[0])
    indices = [record[0] for record in records]
    assert len(set(indices)) == len(indices), "an image was evaluated twice"
    boxes, labels, scores = (
        np.concatenate([record[column] for record in records] or [np.zeros(shape)])
        for column, shape in ((1, (0, 4)), (2, 0), (3, 0))
    )
    images = np.repeat(np.array(indices, np.int64), [len(record[2]) for record in records])
    return average_precision.Detections(images, boxes, labels.astype(np.int64), scores)


def table(names: list[str], precisions: list[average_precision.ClassPrecision]) -> str:
    """Average precision in percent of every class as a Markdown table, the means last."""
    rows = [(name, *one) for name, one in zip(names, precisions, strict=True)]
    columns = list(zip(*precisions, strict=True))
    rows.append(
        (
            "mean",
            average_precision.mean_over_classes(columns[0]),
            average_precision.mean_over_classes(columns[1]),
            sum(columns[2]),
            sum(columns[3]),
        )
    )
    width = max(len(name) for name in ("class", *names))
    lines = [
        f"| {'class':<{width}} | AP 07 | AP area | objects | detections |",
        f"| {'-' * width} | ----: | ------: | ------: | ---------: |",
    ]
    for name, seven, area, objects, found in rows:
        first, second = (
            f"{100 * value:.2f}" if np.isfinite(value) else "-" for value in (seven, area)
        )
        lines.append(
            f"| {name:<{width}} | {first:>5} | {second:>7} | {objects:>7,} | {found:>10,} |"
        )
    return "\n".join(lines) + "\n"


def drawn(photo, record: tuple, names: list[str]) -> Tensor:
    """A photo (3, h, w) uint8 with its objects and what was found on it."""
    image, objects = pil_to_tensor(photo.image), photo.objects
    _, boxes, labels, scores = record
    shown = np.flatnonzero(scores >= DRAWN)
    if len(objects.boxes):
        image = draw_bounding_boxes(image, objects.boxes, colors="white", width=1)
    if not len(shown):
        return image
    texts = [f"{names[int(labels[place]) - 1]} {scores[place]:.2f}" for place in shown]
    colors = [COLORS[int(labels[place]) % len(COLORS)] for place in shown]
    return draw_bounding_boxes(image, torch.from_numpy(boxes[shown]), texts, colors, width=2)


COLORS = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)  # the colour-blind tell them apart
