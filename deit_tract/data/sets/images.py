"""Labelled images, each by its position: what all forms share, class folders, and images in memory.

Every form gives the same images in the same order: that of torchvision's ImageFolder, which decides
what the reference's sampler draws. Classes are sorted by name, then the images of a class by folder
and file name, as text: x_1003.JPEG comes before x_101.JPEG, while timm's own order has it behind.

What is kept per image lies in a few arrays. A Python object per image would cost gigabytes:
counting references writes to it, so that every loader worker ends up with a copy.
"""

import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, plural
from deit_tract.recipe.settings.recipe import Data

PARTS = ("train", "val")
MOST_OTHERS = 10_000  # files of a class that are looked at before its first image


class Splits(NamedTuple):
    train: Dataset
    val: Dataset


def mode_of(data: Data) -> str:
    """Return PIL's mode of a recipe's images."""
    return "RGB" if data.channels == 3 else "L"


class Texts:
    """Many short texts in two arrays."""

    def __init__(self, texts: Iterable[str]):
        parts = [os.fsencode(text) for text in texts]
        self.bytes = np.frombuffer(b"".join(parts), np.uint8)
        self.ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.bytes[start : self.ends[index]].tobytes())


class Images(Dataset):
    """The base of all forms. Indexing gives (PIL image, label).

    Indexing raises UserError if the image cannot be decoded.
    """

    root: object  # for messages: where the images lie
    classes: list[str]
    labels: np.ndarray
    mode: str  # PIL's: "RGB" or "L"
    absent: Sequence[str] = ()  # names in the set's own lists whose files are missing

    def open(self, index: int) -> object:
        """Return what PIL's Image.open takes."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return the image's place below `root`."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        return os.path.join(str(self.root), self.name(index))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        index = range(len(self))[index]  # counts from the end, and raises IndexError
        try:
            # as the reference: no rotation by EXIF, alpha dropped, 16 bits cut as PIL does
            with Image.open(self.open(index)) as image:
                return image.convert(self.mode), int(self.labels[index])
        except Exception as error:  # a decoder raises anything on broken bytes
            what = f"cannot be read as an image ({error})"
            raise UserError(self.where(index), what, "replace or remove it") from None


class InMemory(Images):
    """Images held as one uint8 array `pixels` (N, height, width[, 3])."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, classes: list[str], root: object, mode: str
    ):
        self.pixels, self.labels, self.classes = pixels, labels, classes
        self.root, self.mode = root, mode

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]).convert(self.mode), int(self.labels[index])


class Files(Images):
    """Image files, by their names below one folder."""

    def __init__(
        self, root: Path, names: Iterable[str], labels: np.ndarray, classes: list[str], mode: str
    ):
        self.root, self.mode = root, mode
        self.labels, self.classes = labels, classes
        self._names = Texts(names)

    def name(self, index: int) -> str:
        return self._names[index]

    def open(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))


def empty_classes(images: Images) -> list[str]:
    """Name the classes that have no image."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    return [name for name, count in zip(images.classes, counts, strict=True) if not count]


class Folders(Files):
    """ROOT/CLASS/IMAGE. Raises UserError if there are no class folders, or empty ones."""

    def __init__(self, root: Path, mode: str):
        try:
            classes, class_to_idx = find_classes(str(root))
            _refuse_empty(root, [name for name in classes if not _holds_image(root / name)])
            samples = make_dataset(str(root), class_to_idx, IMG_EXTENSIONS, allow_empty=True)
        except OSError as error:  # no class folders at all, or not permitted
            raise UserError(root, f"cannot be read as class folders ({error})") from None
        start = len(os.path.join(root, ""))
        labels = np.array([label for _, label in samples], np.int32)
        super().__init__(root, (path[start:] for path, _ in samples), labels, classes, mode)
        _refuse_empty(root, empty_classes(self))


def _refuse_empty(root: Path, classes: list[str]) -> None:
    if classes:
        what = f"{plural(len(classes), 'class folder')} without an image: {listed(classes)}"
        raise UserError(root, what, f"remove or fill; read are {' '.join(IMG_EXTENSIONS)}")


def _holds_image(folder: Path) -> bool:
    """Whether an image lies in a folder or below, its own files first.

    Raises UserError after many files without one: this is no data set but half a disk.
    """
    looked = 0
    folders = deque([folder])
    while folders:
        with suppress(OSError), os.scandir(folders.popleft()) as entries:
            for entry in entries:
                looked += 1
                if entry.name.lower().endswith(IMG_EXTENSIONS):
                    return True
                if looked == MOST_OTHERS:
                    what = f"no image among the first {looked:,} files"
                    raise UserError(folder, what, "give a folder with DIR/CLASS/IMAGE")
                if entry.is_dir():
                    folders.append(entry)
    return False


class ListedFiles(Files):
    """Image files that a set's own lists name; those that are not there go to `absent`."""

    def __init__(
        self, root: Path, names: Sequence[str], labels: np.ndarray, classes: list[str], mode: str
    ):
        there = set(os.listdir(root))
        found = [name in there for name in names]
        names = np.array(names, object)
        super().__init__(root, names[found], labels[found].astype(np.int32), classes, mode)
        self.absent = names[np.logical_not(found)].tolist()
        if not len(self):
            what = "holds none of the images that the set's lists name"
            raise UserError(root, what, "unpack them there")
