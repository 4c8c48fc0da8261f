"""Shared by the tests of voc."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_tract.data.sets import voc


def annotation(*rows, size=(64, 48)) -> str:
    """VOC's XML of (name, xmin, ymin, xmax, ymax, difficult) rows; a person's parts have boxes of
    their own.
    """
    text = (
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        if size
        else ""
    )
    for name, xmin, ymin, xmax, ymax, difficult in rows:
        head = "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        part = f"<part><name>head</name><bndbox>{head}</bndbox></part>"
        text += f"<object>{part}<name>{name}</name><difficult>{difficult}</difficult>"
        text += f"<bndbox><xmax>{xmax}</xmax>"
        text += f"<xmin>{xmin}</xmin><ymax>{ymax}</ymax><ymin>{ymin}</ymin></bndbox></object>"
    return f"<annotation><folder>VOC2007</folder>{text}</annotation>"


def write(
    folder: Path, photos: dict[str, str], splits: dict[str, list[str]], year: str = "VOC2007"
) -> Path:
    """A small set as the tars unpack; every photo is 64 x 48 px."""
    root = folder / "VOCdevkit" / year
    for part in voc.PARTS:
        (root / part).mkdir(parents=True, exist_ok=True)
    for key, text in photos.items():
        (root / "Annotations" / f"{key}.xml").write_text(text)
        pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{key}.jpg")
    for name, ids in splits.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(ids) + "\n")
    return root


PHOTOS = {
    "000005": annotation(("dog", 1, 1, 64, 48, 0), ("cat", 10, 11, 20, 31, 1)),
    "2007_000027": annotation(("Cat ", 2.5, 3, 4, 9, 0)),
    "empty": annotation(),
}
SPLITS = {"trainval": list(PHOTOS), "test": ["000005"]}


@pytest.fixture
def small(tmp_path) -> Path:
    write(tmp_path, PHOTOS, SPLITS)
    return tmp_path
