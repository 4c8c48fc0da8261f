"""Bright rectangles on noise, each of its class's colour: detection data for tests, any size, nothing on disk."""

import colorsys

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.common.seeds import derive
from deit_tract.data.sets.boxes import Objects, Photo
from deit_tract.data.sets.readers import Splits
from deit_tract.recipe.settings.recipe import Data


class InMemory(Dataset):
    """Images held as one uint8 array (N, height, width)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mode: str):
        self.images, self.labels, self.mode = images, labels, mode

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert(self.mode), int(self.labels[index])


def _digits(mode: str) -> Splits:
    """scikit-learn's 1,797 scans of 8x8 px with 17 grey levels; every fifth is held out, 1,437 train and 360 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(images)) % 5 == 0
    return Splits(
        *(InMemory(images[part], digits.target[part], mode) for part in (~held_out, held_out))
    )


class Synthetic(Dataset):
    """Noise around a grey level that tells the class: for tests, any size, nothing on disk."""

    def __init__(self, data: Data, count: int, first: int = 0):
        self.data, self.count, self.first = data, count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        data, label = self.data, index % self.data.classes
        generator = np.random.default_rng(derive(0, "synthetic", self.first + index))
        noise = generator.normal(
            255 * (label + 0.5) / data.classes, 20, (data.image_size, data.image_size, 3)
        )
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        return image if data.channels == 3 else image.convert("L"), label


class SyntheticObjects(Dataset):
    """`count` images of about `size` px with up to three rectangles, of three the last is difficult.

    Indexing gives (Photo, index).
    """

    name = "synthetic"

    def __init__(self, size: int, class_names: list[str], count: int, first: int = 0):
        self.size, self.class_names, self.first = size, class_names, first
        self.objects = [self._draw(index)[1] for index in range(count)]

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int) -> tuple[Photo, int]:
        return Photo(Image.fromarray(self._draw(index)[0]), self.objects[index], index), index

    def _draw(self, index: int) -> tuple[np.ndarray, Objects]:
        draws = np.random.default_rng(derive(0, "shapes", self.first + index))
        height, width = (round(self.size * factor) for factor in draws.uniform(1.0, 1.3, 2))
        image = draws.normal(90, 20, (height, width, 3))
        boxes, labels = [], []
        for _ in range(0 if index % 16 == 15 else 1 + index % 3):
            w, h = draws.integers(self.size // 4, self.size // 2, 2)
            x, y = draws.integers(0, width - w), draws.integers(0, height - h)
            label = int(draws.integers(len(self.class_names)))
            color = colorsys.hsv_to_rgb(label / len(self.class_names), 1.0, 1.0)
            image[y : y + h, x : x + w] = 255 * np.array(color) + draws.normal(0, 10, (h, w, 3))
            boxes.append([x, y, x + w, y + h])
            labels.append(label + 1)
        difficult = [len(boxes) > 2 and place == len(boxes) - 1 for place in range(len(boxes))]
        found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        objects = Objects(
            found,
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(difficult, dtype=torch.bool),
        )
        return image.clip(0, 255).astype(np.uint8), objects
