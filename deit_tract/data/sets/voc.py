"""Photos with boxes in PASCAL VOC's layout: every annotation is checked once, before training.

Boxes are half-open, from 0: VOC's inclusive 1-based (xmin, ymin, xmax, ymax) becomes (xmin - 1,
ymin - 1, xmax, ymax). So a plain IoU is the devkit's with its + 1, and a mirrored box is exact.
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import listed, nearest
from deit_tract.data.sets.boxes import Objects, Photo
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Data

TARS = {  # MD5 of the official tars, as torchvision has them
    "VOCtrainval_06-Nov-2007.tar": "c52e279531787c972589f7e41ab4ae64",
    "VOCtest_06-Nov-2007.tar": "b6e924de25625d8de591ea690078ad9f",
}
PARTS = ("Annotations", "JPEGImages", "ImageSets/Main")
LAYOUT = f"expected DIR/VOCdevkit/VOC2007 with {', '.join(PARTS)} (docs/detection.md)"
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
SHOWN = 20  # errors of a split that are listed; the rest are counted


def read_voc(data: Data, parts: Sequence[str], detect: FasterRcnn) -> list["Voc"]:
    """Read a recipe's splits. Raises UserErrors with every file that is not as it must be."""
    root = find_root(Path(data.dir), data.name == "voc2007")
    names = {"train": detect.train_split, "val": detect.val_split}
    splits = [Voc(root, names[part], detect.class_names) for part in parts]
    for part, split in zip(parts, splits, strict=True):
        if part == "val" and not any((~objects.difficult).any() for objects in split.objects):
            what = f"split {split.name} has no object to find"
            raise UserError(root, what, "choose another detect.val_split")
    return splits


def find_root(directory: Path, official: bool = False) -> Path:
    """Return the folder with Annotations, JPEGImages and ImageSets.

    That is the given folder, or one below it as the tars unpack.
    """
    names = ["VOC2007", "VOCdevkit/VOC2007"] if official else ["VOC*", "VOCdevkit/VOC*"]
    places = [directory, *(place for name in names for place in sorted(directory.glob(name)))]
    roots = [place for place in places if all((place / part).is_dir() for part in PARTS)]
    if not roots:
        raise UserError(directory, "holds no data in VOC's layout", LAYOUT)
    if len(roots) > 1:
        what = f"holds {len(roots)} sets: {', '.join(map(str, roots))}"
        raise UserError(directory, what, "give one of them")
    return roots[0]


class Voc(Dataset):
    """One split. Indexing gives (Photo, None).

    Indexing raises UserError if the image is not what its annotation says.
    """

    def __init__(self, root: Path, name: str, classes: list[str]):
        """Read and check every annotation of ImageSets/Main/NAME.txt. Raises UserErrors."""
        self.root, self.name, self.classes = root, name, classes
        labels = {text.strip().lower(): label for label, text in enumerate(classes, 1)}
        self.ids = _read_ids(root / "ImageSets" / "Main" / f"{name}.txt")
        self.files: list[str] = []
        self.objects: list[Objects] = []
        self.sizes: list[tuple[int, int] | None] = []  # width, height
        errors: list[UserError] = []
        for key in self.ids:
            try:
                objects, size = read_annotation(root / "Annotations" / f"{key}.xml", labels)
                self.files.append(_image_file(root, key))
                self.objects.append(objects)
                self.sizes.append(size)
            except UserError as error:
                errors.append(error)
        if len(errors) > SHOWN:
            more = f"{len(errors) - SHOWN:,} files more are like that"
            errors = [*errors[:SHOWN], UserError(root, more)]
        if errors:
            raise UserErrors(errors)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Photo, None]:
        path = self.root / "JPEGImages" / self.files[index]
        try:
            with Image.open(path) as image:
                # no rotation by EXIF: the boxes are of the stored pixels
                image = image.convert("RGB")
        except Exception as error:  # a decoder raises anything on broken bytes
            what = f"cannot be read as an image ({error})"
            raise UserError(path, what, "replace or remove it") from None
        size, found = self.sizes[index], image.size
        if size not in (None, found):
            what = f"is {found[0]} x {found[1]} px, its annotation says {size[0]} x {size[1]}"
            raise UserError(path, what, "are the boxes of another version of the photo?")
        return Photo(image, self.objects[index], index), None


def _read_ids(path: Path) -> list[str]:
    """Read the names of a split's images as text: 2007_000027 and 000005 are not numbers."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        there = listed(sorted(file.stem for file in path.parent.glob("*.txt")), 8)
        instead = f"there are {there}: set detect.train_split, detect.val_split"
        what = f"cannot be read ({error.strerror})"
        raise UserError(path, what, instead if there else LAYOUT) from None
    ids = [line for line in lines if line]
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(path, f"lists {twice[0]} more than once", "an image counts once")
    if not ids:
        raise UserError(path, "lists no image", "choose another split")
    return ids


def _image_file(root: Path, key: str) -> str:
    for suffix in SUFFIXES:
        if (root / "JPEGImages" / f"{key}{suffix}").is_file():
            return f"{key}{suffix}"
    path = root / "JPEGImages" / f"{key}.jpg"
    raise UserError(path, "is not there", f"read are {' '.join(SUFFIXES)}")


def read_annotation(path: Path, labels: dict[str, int]) -> tuple[Objects, tuple[int, int] | None]:
    """Read an image's objects and, if the annotation has it, its (width, height).

    Raises UserError naming the file.
    """
    try:
        tree = ET.parse(path)
    except (OSError, ET.ParseError) as error:
        raise UserError(path, f"cannot be read as an annotation ({error})") from None
    width, height = (_number(path, tree.find(f"size/{side}"), side) for side in ("width", "height"))
    size = (int(width), int(height)) if width and height else None
    boxes, classes, difficult = [], [], []
    for number, item in enumerate(tree.findall("object"), 1):
        name = (item.findtext("name") or "").strip().lower()
        if name not in labels:
            what = f"object {number} is of class '{name}', which detect.class_names lacks"
            raise UserError(path, what, nearest(name, labels))
        boxes.append(_read_box(path, number, item, size))
        classes.append(labels[name])
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    objects = Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),  # (0, 4) if there are none
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
    )
    return objects, size


def _read_box(
    path: Path, number: int, item: ET.Element, size: tuple[int, int] | None
) -> list[float]:
    """Read an object's own box (a person's parts have boxes too), half-open from 0."""
    names = ("xmin", "ymin", "xmax", "ymax")
    corners = [_number(path, item.find(f"bndbox/{name}"), name) for name in names]
    if None in corners:
        instead = "give bndbox with xmin, ymin, xmax, ymax"
        raise UserError(path, f"object {number} has no box", instead)
    x0, y0, x1, y1 = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
    box = f"the box {corners} of object {number}"
    if not (x0 < x1 and y0 < y1):
        raise UserError(path, f"{box} is empty", "xmax and ymax are the last pixel in it")
    width, height = size or (float("inf"), float("inf"))
    if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1:
        raise UserError(path, f"{box} leaves the {width} x {height} px of its image")
    # tools that count from 0 are 1 px off
    return [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]


def _number(path: Path, element: ET.Element | None, name: str) -> float | None:
    if element is None:
        return None
    try:
        return float(element.text)
    except (TypeError, ValueError):
        raise UserError(path, f"{name} is '{element.text}', not a number") from None
