"""Images of noise, and folders of grey ones."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (c, h, w)"""
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)


def write_grey_photos(folder: Path) -> None:
    """Two classes, a and b, of eight images each in train/ and in val/, each grey of its own."""
    for part in ("train", "val"):
        for kind in ("a", "b"):
            (folder / part / kind).mkdir(parents=True)
            for index in range(8):
                pixels = np.full((20, 20, 3), 10 * index, np.uint8)
                Image.fromarray(pixels).save(folder / part / kind / f"{index}.png")
