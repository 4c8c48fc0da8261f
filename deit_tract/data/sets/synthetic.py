"""Drawn images for tests, of any size: nothing lies on disk."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.common.seeds import derive
from deit_tract.data.sets.boxes import Objects, Photo
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Data


def read_synthetic(
    data: Data, parts: Sequence[str], detect: FasterRcnn | None = None
) -> list[Dataset]:
    """Draw parts of either set: images that tell their class, or photos with boxes."""
    if detect is not None:
        places = {"train": range(64), "val": range(64, 80)}
        names = detect.class_names
        return [SyntheticObjects(data.image_size, names, places[part]) for part in parts]
    places = {"train": range(2048), "val": range(2048, 2048 + 64)}
    return [Synthetic(data, places[part]) for part in parts]


class Synthetic(Dataset):
    """Noise around a grey level that tells the class. `places` are the images' seeds."""

    root = "synthetic"

    def __init__(self, data: Data, places: range):
        self.data, self.places = data, places
        self.classes = [str(label) for label in range(data.classes)]
        self.labels = np.arange(len(places)) % data.classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        data = self.data
        label = index % data.classes
        generator = np.random.default_rng(derive(0, "synthetic", self.places.start + index))
        grey = 255 * (label + 0.5) / data.classes
        noise = generator.normal(grey, 20, (data.image_size, data.image_size, 3))
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        return image if data.channels == 3 else image.convert("L"), label


class SyntheticObjects(Dataset):
    """Up to three bright rectangles on noise, each in its class's colour.

    Images of about `size` px, `places` their seeds; of three rectangles the last is difficult.
    Indexing gives (Photo, None).
    """

    name = root = "synthetic"

    def __init__(self, size: int, classes: list[str], places: range):
        self.size, self.classes, self.first = size, classes, places.start
        self.objects = [self._draw(index)[1] for index in range(len(places))]

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> tuple[Photo, None]:
        return Photo(Image.fromarray(self._draw(index)[0]), self.objects[index], index), None

    def _draw(self, index: int) -> tuple[np.ndarray, Objects]:
        draws = np.random.default_rng(derive(0, "shapes", self.first + index))
        height, width = (round(self.size * factor) for factor in draws.uniform(1.0, 1.3, 2))
        image = draws.normal(90, 20, (height, width, 3))
        boxes: list[list[int]] = []
        labels: list[int] = []
        smallest = max(self.size // 4, 1)
        largest = max(self.size // 2, smallest + 1)
        for _ in range(0 if index % 16 == 15 else 1 + index % 3):
            w, h = draws.integers(smallest, largest, 2)
            x = draws.integers(0, max(width - w, 1))
            y = draws.integers(0, max(height - h, 1))
            label = int(draws.integers(len(self.classes)))
            color = colorsys.hsv_to_rgb(label / len(self.classes), 1.0, 1.0)
            image[y : y + h, x : x + w] = 255 * np.array(color) + draws.normal(0, 10, (h, w, 3))
            boxes.append([x, y, x + w, y + h])
            labels.append(label + 1)
        difficult = torch.zeros(len(boxes), dtype=torch.bool)
        difficult[2:] = True
        rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        objects = Objects(rows, torch.tensor(labels, dtype=torch.int64), difficult)
        return image.clip(0, 255).astype(np.uint8), objects
