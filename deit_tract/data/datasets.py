"""Data sets by name: (image, label) pairs as PIL images, and where on disk they are looked for."""

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.data import imagenet, transfer
from deit_tract.data.readers import Folders, HuggingFace, Images, Tars
from deit_tract.data.stream import derive
from deit_tract.errors import UserError
from deit_tract.schema import Data

TRAIN, VAL = ("train",), ("val", "validation", "test")  # what the parts of a set may be called
LAYOUT = "expected DIR/train/CLASS/IMAGE, DIR/val/... (docs/data.md has the other layouts)"
FIX_VAL = "sort each image into the folder of its synset: python tools/prepare.py imagenet DIR --fix-val LABELS"


class Splits(NamedTuple):
    train: Dataset
    val: Dataset


def load(data: Data) -> Splits:
    """The training and validation images of a recipe. Raises UserError where the data is not as the recipe says."""
    mode = "RGB" if data.channels == 3 else "L"
    if data.name == "digits":
        splits, classes = _digits(mode), 10
    elif data.name == "synthetic":
        splits, classes = Splits(Synthetic(data, 2048), Synthetic(data, 64, first=2048)), data.classes
    else:
        splits = _checked(data, mode)
        classes = len(splits.train.classes)
    if classes != data.classes:
        raise UserError("data.classes", f"{data.classes}, but the data has {classes}", f"set data.classes={classes}")
    return splits


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
    return Splits(*(InMemory(images[part], digits.target[part], mode) for part in (~held_out, held_out)))


class Synthetic(Dataset):
    """Noise around a grey level that tells the class: for tests, any size, nothing on disk."""

    def __init__(self, data: Data, count: int, first: int = 0):
        self.data, self.count, self.first = data, count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        data, label = self.data, index % self.data.classes
        generator = np.random.default_rng(derive(0, "synthetic", self.first + index))
        noise = generator.normal(255 * (label + 0.5) / data.classes, 20, (data.image_size, data.image_size, 3))
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
        return image if data.channels == 3 else image.convert("L"), label


def _checked(data: Data, mode: str) -> Splits:
    """A recipe's images on disk, after its set's own checks."""
    if data.dir is None:
        raise UserError("data.dir", f"data set '{data.name}' lies on disk", "give --data-dir DIR")
    if data.name in transfer.NAMES:
        return Splits(*transfer.load(data.name, data.dir, mode, data.verify))
    official = data.name == "imagenet"
    splits = on_disk(data.dir, mode, ordered=official and data.verify)
    if official:
        imagenet.check(*splits, whole=data.verify)
    check_classes(*splits)
    return splits


def check_classes(train: Images, val: Images) -> None:
    """Raises UserError where the parts do not have the same classes: a label would mean two things."""
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes)) or ["their order"]
        raise UserError(val.root, f"classes differ from those of {train.root}: {', '.join(odd[:5])}", "make them equal")


def on_disk(directory: str, mode: str = "RGB", ordered: bool = False) -> Splits:
    """The two parts of a set below a folder, each in any form of `readers`, or those of `hfds/NAME`.

    `ordered` insists on the reference's order. Raises UserError where a part is not there or not sorted by class.
    """
    return Splits(*parts_on_disk(directory, mode, ordered, (TRAIN, VAL)))


def parts_on_disk(directory: str, mode: str, ordered: bool, parts: tuple[tuple[str, ...], ...]) -> list[Images]:
    """`on_disk` for the parts that are asked for, each by the names that it may have."""
    prefix, _, name = directory.partition("/")
    if prefix == "hfds" and name:
        return [_hub(name, names, mode, ordered) for names in parts]
    root = Path(directory)
    if not root.is_dir():
        raise UserError(root, "no such folder", "give --data-dir DIR with train/ and val/ inside")
    places = [place_of(root, names) for names in parts]
    return [_open(place, mode, ordered) for place in places]


def place_of(root: Path, names: tuple[str, ...]) -> Path:
    """A part's folder, else its tar, under our name or ImageNet's own."""
    tars = [root / f"{prefix}{name}.tar" for prefix in ("", "ILSVRC2012_img_") for name in names]
    for place in [root / name for name in names if (root / name).is_dir()] + [tar for tar in tars if tar.is_file()]:
        return place
    raise UserError(root, f"has no folder {' or '.join(names)}, nor such a .tar", LAYOUT)


def _open(place: Path, mode: str, ordered: bool) -> Images:
    """The form is told by what lies in the folder: any folders, else tars, else a saved Hugging Face data set."""
    if place.is_file():
        return _tars(place, mode)
    with os.scandir(place) as entries:
        files = []
        for entry in entries:
            if entry.is_dir():
                return Folders(place, mode)
            files.append(entry.name)
    if "state.json" in files:
        return _saved(place, mode, ordered)
    if any(name.endswith(".tar") for name in files):
        return _tars(place, mode)
    images = [name for name in files if name.lower().endswith(IMG_EXTENSIONS)]
    if images:
        instead = FIX_VAL if images[0].startswith("ILSVRC2012_val") else LAYOUT
        raise UserError(place, f"holds {len(images):,} images, but no class folders", instead)
    return Folders(place, mode)  # which says what is missing


def _tars(place: Path, mode: str) -> Tars:
    tars = Tars(place, mode)
    if {"", "."} & set(tars.classes):
        instead = f"unpack it to {place.with_suffix('')} and {FIX_VAL}" if "val" in place.name else LAYOUT
        raise UserError(place, "holds images outside of class folders", instead)
    return tars


def _saved(place: Path, mode: str, ordered: bool) -> HuggingFace:
    """What `datasets` wrote by save_to_disk; timm's reader knows the hub and its caches alone."""
    _need_datasets()
    from datasets import load_from_disk

    try:
        return HuggingFace(load_from_disk(str(place)), place, mode, ordered)
    except (OSError, ValueError) as error:
        raise UserError(place, f"cannot be read as a saved data set ({error})", "save it again") from None


def _hub(name: str, parts: tuple[str, ...], mode: str, ordered: bool) -> HuggingFace:
    """The first of a set's parts that exists, through timm's reader."""
    _need_datasets()
    from timm.data.readers.reader_hfds import ReaderHfds

    failures = []
    for part in parts:
        try:
            return HuggingFace(ReaderHfds(name, split=part).dataset, f"hfds/{name}/{part}", mode, ordered)
        except UserError:
            raise
        except Exception as error:  # the hub, its cache and the readers of every format raise what they like
            failures.append(" ".join(str(error).split()))
    raise UserError(f"hfds/{name}", f"cannot be loaded ({failures[0]})", "is the name right, and access granted?")


def _need_datasets() -> None:
    if importlib.util.find_spec("datasets") is None:
        raise UserError("data.dir", "Hugging Face data sets need the package 'datasets'", "pip install datasets")
