"""CIFAR-10 and CIFAR-100 from their official Python files (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from deit_tract.common.errors import UserError
from deit_tract.data.sets import official
from deit_tract.data.sets.readers import Images

TORCHVISION = {"cifar10": CIFAR10, "cifar100": CIFAR100}  # they know names and MD5 of the files
LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}

# What numpy's arrays and numbers are pickled with, in the names of numpy 2; nothing else is looked up
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}


class Pixels(Images):
    """Images held as one uint8 array `pixels` (N, height, width, 3). `root` and `names` are for messages."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, classes: list[str], root: Path, mode: str
    ):
        self.pixels, self.labels, self.classes, self.root, self.mode = (
            pixels,
            labels,
            classes,
            root,
            mode,
        )

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]).convert(self.mode), int(self.labels[index])


def load_cifar(
    name: str, directory: str, mode: str = "RGB", verify: bool = True
) -> tuple[Pixels, Pixels]:
    """The training and test images of "cifar10" or "cifar100" in the files' order.

    Raises UserError where a file is missing or is none of CIFAR's, with `verify` where the counts are not official.
    """
    train, test, meta = files(name)
    folder = official.folder_of(name, directory)
    official.need(name, folder, [*train, *test, meta])
    key = TORCHVISION[name].meta["key"]
    classes = [_text(one) for one in _entries(folder / meta, key)[key]]
    splits = tuple(_part(name, folder, part, classes, mode) for part in (train, test))
    if verify:
        official.check_official(name, *splits)
    return splits


def files(name: str) -> tuple[list[str], list[str], str]:
    """The names of the training, test and class-name files."""
    known = TORCHVISION[name]
    return (
        [file for file, _ in known.train_list],
        [file for file, _ in known.test_list],
        known.meta["filename"],
    )


def md5(name: str) -> dict[str, str]:
    """The MD5 of every file, as published."""
    known = TORCHVISION[name]
    return dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])


def _part(name: str, folder: Path, names: list[str], classes: list[str], mode: str) -> Pixels:
    batches = [_batch(folder / file, LABELS[name], len(classes)) for file in names]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    root = folder / (names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}")
    return Pixels(pixels, labels, classes, root, mode)


def _batch(path: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 32, 32, 3) and labels (N,) of one file, whose rows are 1,024 red, then green, then blue values."""
    entries = _entries(path, "data", key)
    try:
        data, labels = np.asarray(entries["data"]), np.asarray(entries[key], np.int32)
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise ValueError(f"{data.dtype} array of shape {data.shape} for {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()} for {classes} classes")
    except (ValueError, TypeError) as error:
        raise UserError(path, f"is no file of CIFAR ({error})", "unpack it again") from None
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _entries(path: Path, *needed: str) -> dict[str, Any]:
    """A file's dictionary. Its keys are text or bytes, as Python 2 or 3 wrote them and whoever packed it again."""
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # broken bytes make a pickle raise what they like
        raise UserError(path, f"cannot be read ({error})", "unpack it again") from None
    entries = (
        {_text(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    )
    lacking = [key for key in needed if key not in entries]
    if lacking:
        raise UserError(
            path, f"is no file of CIFAR (it lacks {', '.join(lacking)})", "unpack it again"
        )
    return entries


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Unpickler(pickle.Unpickler):
    """Reads plain types and numpy arrays alone: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # Python 3's bytes in a file of protocol 2
            return _latin1
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it would call {module}.{name}, which a data file has no need of"
        )


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")
