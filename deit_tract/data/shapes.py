"""Bright rectangles on noise, each of its class's colour: detection data for tests, any size, nothing on disk."""

import colorsys

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.data.boxes import Objects, Photo
from deit_tract.data.stream import derive


class Shapes(Dataset):
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
        objects = Objects(found, torch.tensor(labels, dtype=torch.int64), torch.tensor(difficult, dtype=torch.bool))
        return image.clip(0, 255).astype(np.uint8), objects
