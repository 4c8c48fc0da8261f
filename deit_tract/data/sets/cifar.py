"""CIFAR-10 and CIFAR-100 from their official Python files."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from deit_tract.common.errors import UserError
from deit_tract.data.sets.images import InMemory, mode_of
from deit_tract.data.sets.official import folder_of, need_parts
from deit_tract.recipe.settings.recipe import Data

# torchvision's classes know the names and MD5 of the files
TORCHVISION = {"cifar10": CIFAR10, "cifar100": CIFAR100}
LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}

# What numpy's arrays and numbers are pickled with, in the names of numpy 2; all else is refused
_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}


def read_cifar(data: Data, parts: Sequence[str]) -> list[InMemory]:
    """Read parts of "cifar10" or "cifar100" in the files' order.

    Raises UserError if a file is missing or is not one of CIFAR's.
    """
    name = data.name
    train, test, meta = files(name)
    folder = folder_of(name, data.dir)
    need_parts(name, folder, [*train, *test, meta])
    key = TORCHVISION[name].meta["key"]
    classes = [_text(one) for one in _entries(folder / meta, key)[key]]
    batches = {"train": train, "val": test}
    return [_read_part(name, folder, batches[part], classes, mode_of(data)) for part in parts]


def files(name: str) -> tuple[list[str], list[str], str]:
    """Return the names of the training, test and class-name files."""
    known = TORCHVISION[name]
    train, test = ([file for file, _ in files] for files in (known.train_list, known.test_list))
    return train, test, known.meta["filename"]


def md5(name: str) -> dict[str, str]:
    """Return the MD5 of every file, as published."""
    known = TORCHVISION[name]
    return dict([*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])])


def _read_part(
    name: str, folder: Path, names: list[str], classes: list[str], mode: str
) -> InMemory:
    batches = [_batch(folder / file, LABELS[name], len(classes)) for file in names]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    root = folder / (names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}")
    return InMemory(pixels, labels, classes, root, mode)


def _batch(path: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels (N, 32, 32, 3) and labels (N,) of one file.

    Its rows are 1,024 red, then green, then blue values.
    """
    entries = _entries(path, "data", key)
    try:
        data = np.asarray(entries["data"])
        labels = np.asarray(entries[key], np.int32)
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise ValueError(f"{data.dtype} array of shape {data.shape} for {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()} for {classes} classes")
    except (ValueError, TypeError) as error:
        raise UserError(path, f"is not a file of CIFAR ({error})", "unpack it again") from None
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _entries(path: Path, *needed: str) -> dict[str, Any]:
    """Read a file's dictionary, whose keys are text or bytes, as Python 2 or 3 wrote them."""
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # broken bytes make a pickle raise anything
        raise UserError(path, f"cannot be read ({error})", "unpack it again") from None
    entries = {}
    if isinstance(content, dict):
        entries = {_text(key): value for key, value in content.items()}
    missing = [key for key in needed if key not in entries]
    if missing:
        what = f"is not a file of CIFAR (it lacks {', '.join(missing)})"
        raise UserError(path, what, "unpack it again")
    return entries


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Unpickler(pickle.Unpickler):
    """Reads only plain types and numpy arrays: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # Python 3's bytes in a file of protocol 2
            return _latin1
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        what = f"it would call {module}.{name}, which a data file has no need of"
        raise pickle.UnpicklingError(what)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")
