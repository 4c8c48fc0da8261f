"""Labelled images on disk, each by its position: class folders, tars, Hugging Face data sets.

Every form gives the same images in the same order: that of torchvision's ImageFolder, which decides what the
reference's sampler draws. Classes are sorted by name, then the images of a class by folder and file name, as text:
x_1003.JPEG stands before x_101.JPEG, where timm's own order has it behind.

What is kept per image lies in a few arrays. A Python object per image would cost gigabytes: counting references writes
to it, so that every loader worker ends up with a copy.
"""

import io
import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from timm.data.readers.reader_image_in_tar import extract_tarinfos
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from deit_tract.common.errors import UserError


class Splits(NamedTuple):
    train: Dataset
    val: Dataset


INDEX_FROM = (
    2**30
)  # bytes of tars from which their index is kept: timm reads about 1 GB/s to make one
FEW_TARS = 64  # tars that a process keeps open; a tar per class would exceed the usual limit of 1,024 files
IMAGENET_SUFFIX = re.compile(r"_n\d{8}(?=\.\w+$)")


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
    """What the forms share. Indexing gives (PIL image, label), or a UserError where the image cannot be decoded."""

    root: object  # for messages: where the images lie
    classes: list[str]
    labels: np.ndarray
    mode: str  # PIL's: "RGB" or "L"
    absent: Sequence[str] = ()  # names that the set's own lists have and that are not there

    def open(self, index: int) -> object:
        """What PIL's Image.open takes."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """The image's place below `root`."""
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
        except Exception as error:  # a decoder raises what it likes on broken bytes
            what = f"cannot be read as an image ({error})"
            raise UserError(self.where(index), what, "replace or remove it") from None


class Folders(Images):
    """ROOT/CLASS/IMAGE. Raises UserError where there are no class folders, or empty ones."""

    def __init__(self, root: Path, mode: str):
        self.root, self.mode = root, mode
        try:
            self.classes, class_to_idx = find_classes(str(root))
            samples = make_dataset(str(root), class_to_idx, IMG_EXTENSIONS, allow_empty=True)
        except OSError as error:  # no class folders at all, or not permitted
            raise UserError(root, f"cannot be read as class folders ({error})") from None
        self.labels = np.array([label for _, label in samples], np.int32)
        start = len(os.path.join(root, ""))
        self._names = Texts(path[start:] for path, _ in samples)
        self._refuse_empty()

    def _refuse_empty(self) -> None:
        counts = np.bincount(self.labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            listed = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            what = f"{len(empty)} class folder{'s' * (len(empty) > 1)} without an image: {listed}"
            raise UserError(self.root, what, f"remove or fill; read are {' '.join(IMG_EXTENSIONS)}")

    def name(self, index: int) -> str:
        return self._names[index]

    def open(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))


class Tars(Images):
    """A tar of class folders, a tar of a tar per class, or a folder of a tar per class, uncompressed.

    timm's scan finds the images; they are read by their place in the file, since a TarFile's position is shared with
    forked workers. The index of large tars is kept beside them (`.NAME.index.npz`) for as long as they do not change.
    Raises UserError where a tar cannot be read or is cut off.
    """

    def __init__(self, path: Path, mode: str):
        self.root, self.mode = path, mode
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        stamp = json.dumps([[tar.name, tar.stat().st_size, tar.stat().st_mtime_ns] for tar in tars])
        kept = path.parent / f".{path.name}.index.npz"
        index = _load_index(kept, stamp)
        if index is None:
            index = {"stamp": np.array(stamp), **_scan(path, tars)}
            if sum(tar.stat().st_size for tar in tars) >= INDEX_FROM:
                _save_index(kept, index)
        self.tars, self.classes, self.labels = tars, index["classes"].tolist(), index["labels"]
        self._tar, self._offset, self._size = index["tar"], index["offset"], index["size"]
        self._names = Texts(())
        self._names.bytes, self._names.ends = index["names"], index["ends"]
        self._files: dict[int, io.FileIO] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def name(self, index: int) -> str:
        return self._names[index]

    def where(self, index: int) -> str:
        return f"{self.tars[self._tar[index]]}:{self.name(index)}"

    def open(self, index: int) -> io.BytesIO:
        number = int(self._tar[index])
        file = self._files.get(number) or open(self.tars[number], "rb", buffering=0)  # noqa: SIM115
        if len(self.tars) <= FEW_TARS:
            self._files[number] = file
        return io.BytesIO(os.pread(file.fileno(), self._size[index], self._offset[index]))


def _scan(path: Path, tars: Sequence[Path]) -> dict[str, np.ndarray]:
    """The index of the tars: classes, and label, name, tar, offset and size of every image."""
    try:
        samples, targets, class_to_idx, _ = extract_tarinfos(
            os.path.abspath(path), cache_tarinfo=False, extensions=set(IMG_EXTENSIONS), sort=False
        )
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            path, f"cannot be read as a tar ({error})", "download or pack it again"
        ) from None
    except (ValueError, AssertionError):
        raise UserError(path, "holds no images", f"read are {' '.join(IMG_EXTENSIONS)}") from None
    number = {tar.name: position for position, tar in enumerate(tars)}
    class_of = {label: name for name, label in class_to_idx.items()}
    rows = []
    for (member, tar, inner), label in zip(samples, targets, strict=True):
        name, start = (
            (f"{inner.name}:{member.name}", inner.offset_data) if inner else (member.name, 0)
        )
        place = (number[tar] if tar else 0, start + member.offset_data, member.size)
        rows.append((class_of[label], *os.path.split(member.name), name, place))
    rows.sort()
    return _index(rows)


def _index(rows: list[tuple]) -> dict[str, np.ndarray]:
    """The sorted rows (class, folder, file, name, place) as arrays."""
    names = Texts(name for *_, name, _ in rows)
    classes, labels = np.unique([row[0] for row in rows], return_inverse=True)
    tar, offset, size = np.array([place for *_, place in rows], np.int64).T
    columns = {"tar": tar, "offset": offset, "size": size, "names": names.bytes, "ends": names.ends}
    return {"classes": classes, "labels": labels.astype(np.int32)} | columns


def _load_index(path: Path, stamp: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as file:
            return dict(file) if str(file["stamp"]) == stamp else None
    except (OSError, ValueError, KeyError):  # none there, or not one of ours
        return None


def _save_index(path: Path, index: dict[str, np.ndarray]) -> None:
    """Whole or not at all, as several processes may do it at once."""
    part = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            np.savez(file, **index)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        warnings.warn(
            f"{path} cannot be written ({error}): every start reads the tars anew", stacklevel=2
        )


class HuggingFace(Images):
    """A map-style data set of the Hugging Face library, its columns of images and class labels found by their type.

    Ordered by the images' file names. Raises UserError where a column is missing or images carry no names.
    """

    def __init__(self, dataset, root: object, mode: str, ordered: bool = True):
        from datasets import ClassLabel, Image

        self.root, self.mode = root, mode
        self._image, label = (_column(dataset, kind, root) for kind in (Image, ClassLabel))
        self._data = dataset.select_columns(self._image).cast_column(
            self._image, Image(decode=False)
        )
        self.classes = dataset.features[label].names
        labels = dataset.select_columns(label).with_format("arrow")[:][label].to_numpy()
        if labels.min() < 0:
            raise UserError(root, "holds images without a label", "take a split that has them")
        names = [
            os.path.basename(path.as_py() or "")
            for table in self._data.with_format("arrow").iter(
                1000
            )  # slices of the file, nothing copied
            for chunk in table[self._image].chunks
            for path in chunk.field("path")
        ]
        if ordered and "" in names:
            what = "has images without file names, by which the reference orders them"
            raise UserError(root, what, "with data.verify=false they keep their order")
        keys = [
            (label, IMAGENET_SUFFIX.sub("", name))
            for label, name in zip(labels.tolist(), names, strict=True)
        ]
        self._order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
        self.labels, self._names = (
            labels[self._order].astype(np.int32),
            Texts(names[i] for i in self._order),
        )

    def name(self, index: int) -> str:
        return self._names[index] or f"row {self._order[index]}"

    def open(self, index: int) -> io.BytesIO | str:
        image = self._data[int(self._order[index])][self._image]
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]


def _column(dataset, kind: type, root: object) -> str:
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if not found:
        raise UserError(
            root,
            f"has no column of type {kind.__name__}",
            f"its columns: {', '.join(dataset.features)}",
        )
    return found[0]
