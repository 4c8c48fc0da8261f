"""Photos with boxes in PASCAL VOC's layout: every annotation checked once, before training.

Boxes are half-open, from 0: VOC's inclusive 1-based (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax).
So a plain IoU is the devkit's with its + 1, and a mirrored box is exact.
"""

import hashlib
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import nearest
from deit_tract.data.sets.boxes import Objects, Photo
from deit_tract.data.sets.made import SyntheticObjects
from deit_tract.data.sets.readers import Splits
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Data

COUNTS = {"trainval": 5011, "test": 4952}  # images of VOC2007; the devkit's documentation
TARS = {  # MD5 of the official tars, as torchvision has them
    "VOCtrainval_06-Nov-2007.tar": "c52e279531787c972589f7e41ab4ae64",
    "VOCtest_06-Nov-2007.tar": "b6e924de25625d8de591ea690078ad9f",
}
PARTS = ("Annotations", "JPEGImages", "ImageSets/Main")
LAYOUT = f"expected DIR/VOCdevkit/VOC2007 with {', '.join(PARTS)} (docs/detection.md)"
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
SHOWN = 20  # mistakes of a set that are said; the rest are counted


def load_voc(data: Data, detect: FasterRcnn) -> Splits:
    """The two splits of a recipe. Raises UserErrors with every file that is not as it must be."""
    if data.name == "synthetic":
        return Splits(
            SyntheticObjects(data.image_size, detect.class_names, 64), validation(data, detect)
        )
    return Splits(*_on_disk(data, detect, (detect.train_split, detect.val_split)))


def validation(data: Data, detect: FasterRcnn) -> Dataset:
    """The split that a recipe is evaluated on, alone. Raises UserErrors as `load`."""
    if data.name == "synthetic":
        return SyntheticObjects(data.image_size, detect.class_names, 16, first=64)
    return _on_disk(data, detect, (detect.val_split,))[0]


def _on_disk(data: Data, detect: FasterRcnn, names: tuple[str, ...]) -> list["Voc"]:
    """Splits by name, the last to be evaluated on."""
    if data.dir is None:
        raise UserError("data.dir", f"data set '{data.name}' lies on disk", "give --data-dir DIR")
    root = find_root(Path(data.dir), data.name == "voc2007")
    splits = [Voc(root, name, detect.class_names) for name in names]
    if data.name == "voc2007" and data.verify:
        errors = [error for split in splits for error in wrong_count(split)]
        if errors:
            raise UserErrors(errors)
    if not any((~objects.difficult).any() for objects in splits[-1].objects):
        raise UserError(
            root, f"split {names[-1]} has no object to find", "choose another detect.val_split"
        )
    return splits


def find_root(directory: Path, official: bool = False) -> Path:
    """The folder with Annotations, JPEGImages and ImageSets: the given one, or below it as the tars unpack."""
    names = ["VOC2007", "VOCdevkit/VOC2007"] if official else ["VOC*", "VOCdevkit/VOC*"]
    places = [directory, *(place for name in names for place in sorted(directory.glob(name)))]
    roots = [place for place in places if all((place / part).is_dir() for part in PARTS)]
    if not roots:
        raise UserError(directory, "holds no data in VOC's layout", LAYOUT)
    if len(roots) > 1:
        raise UserError(
            directory, f"holds {len(roots)} sets: {', '.join(map(str, roots))}", "give one of them"
        )
    return roots[0]


def wrong_count(split: "Voc") -> list[UserError]:
    """The error of a split of VOC2007 that does not have its official number of images."""
    wanted = COUNTS.get(split.name)
    if wanted in (None, len(split)):
        return []
    what = f"split {split.name} has {len(split):,} images, VOC2007 has {wanted:,}"
    return [UserError(split.root, what, "set data.verify=false to use a part of it")]


def changed_tars(directory: Path) -> list[UserError]:
    """The errors of VOC2007's official tars, where they lie in a folder, that do not have their MD5."""
    errors = []
    for name, wanted in TARS.items():
        if (directory / name).is_file():
            with open(directory / name, "rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found != wanted:
                errors.append(
                    UserError(directory / name, f"has MD5 {found}, not {wanted}", "fetch it again")
                )
    return errors


class Voc(Dataset):
    """One split. Indexing gives (Photo, index), or a UserError where the image is not what its annotation says."""

    def __init__(self, root: Path, name: str, class_names: list[str]):
        """Read and check every annotation of ImageSets/Main/NAME.txt. Raises UserErrors."""
        self.root, self.name, self.class_names = root, name, class_names
        labels = {text.strip().lower(): label for label, text in enumerate(class_names, 1)}
        self.ids = _ids(root / "ImageSets" / "Main" / f"{name}.txt")
        self.files: list[str] = []
        self.objects: list[Objects] = []
        self.sizes: list[tuple[int, int] | None] = []  # width, height
        errors: list[UserError] = []
        for key in self.ids:
            try:
                objects, size = read(root / "Annotations" / f"{key}.xml", labels)
                self.files.append(_image(root, key))
                self.objects.append(objects)
                self.sizes.append(size)
            except UserError as error:
                errors.append(error)
        if errors:
            more = (
                [UserError(root, f"{len(errors) - SHOWN:,} files more are like that")]
                if len(errors) > SHOWN
                else []
            )
            raise UserErrors(errors[:SHOWN] + more)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Photo, int]:
        path = self.root / "JPEGImages" / self.files[index]
        try:
            with Image.open(path) as image:
                image = image.convert(
                    "RGB"
                )  # no rotation by EXIF: the boxes are of the stored pixels
        except Exception as error:  # a decoder raises what it likes on broken bytes
            raise UserError(
                path, f"cannot be read as an image ({error})", "replace or remove it"
            ) from None
        if self.sizes[index] not in (None, image.size):
            what = f"is {image.width} x {image.height} px, its annotation says {'{} x {}'.format(*self.sizes[index])}"
            raise UserError(path, what, "are the boxes of another version of the photo?")
        return Photo(image, self.objects[index], index), index


def _ids(path: Path) -> list[str]:
    """The names of a split's images, as text: 2007_000027 and 000005 are no numbers."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        there = sorted(file.stem for file in path.parent.glob("*.txt"))[:8]
        instead = (
            f"there are {', '.join(there)}: set detect.train_split, detect.val_split"
            if there
            else LAYOUT
        )
        raise UserError(path, f"cannot be read ({error.strerror})", instead) from None
    ids = [line for line in lines if line]
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(path, f"lists {twice[0]} more than once", "an image counts once")
    if not ids:
        raise UserError(path, "lists no image", "choose another split")
    return ids


def _image(root: Path, key: str) -> str:
    for suffix in SUFFIXES:
        if (root / "JPEGImages" / f"{key}{suffix}").is_file():
            return f"{key}{suffix}"
    raise UserError(
        root / "JPEGImages" / f"{key}.jpg", "is not there", f"read are {' '.join(SUFFIXES)}"
    )


def read(path: Path, labels: dict[str, int]) -> tuple[Objects, tuple[int, int] | None]:
    """An annotation's objects and its image's (width, height) where it says so. Raises UserError naming the file."""
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
        boxes.append(_box(path, number, item, size))
        classes.append(labels[name])
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    box_rows = torch.tensor(boxes, dtype=torch.float32).reshape(
        -1, 4
    )  # none: (0, 4), a photo without objects
    return Objects(
        box_rows,
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
    ), size


def _box(path: Path, number: int, item: ET.Element, size: tuple[int, int] | None) -> list[float]:
    """An object's own box (a person's parts have boxes too), half-open from 0."""
    corners = [
        _number(path, item.find(f"bndbox/{name}"), name)
        for name in ("xmin", "ymin", "xmax", "ymax")
    ]
    if None in corners:
        raise UserError(
            path, f"object {number} has no box", "give bndbox with xmin, ymin, xmax, ymax"
        )
    x0, y0, x1, y1 = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
    if not (x0 < x1 and y0 < y1):
        raise UserError(
            path,
            f"the box {corners} of object {number} is empty",
            "xmax and ymax are the last pixel in it",
        )
    width, height = size or (float("inf"), float("inf"))
    if min(x0, y0) < -1 or x1 > width + 1 or y1 > height + 1:
        raise UserError(
            path,
            f"the box {corners} of object {number} leaves the {width} x {height} px of its image",
        )
    return [
        max(x0, 0.0),
        max(y0, 0.0),
        min(x1, width),
        min(y1, height),
    ]  # tools that count from 0 are 1 px off


def _number(path: Path, element: ET.Element | None, name: str) -> float | None:
    if element is None:
        return None
    try:
        return float(element.text)
    except (TypeError, ValueError):
        raise UserError(path, f"{name} is '{element.text}', no number") from None
