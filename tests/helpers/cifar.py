"""Shared by the tests of cifar."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from deit_tract.common.errors import UserError
from deit_tract.data.sets import cifar
from deit_tract.data.sets.load import load_splits
from deit_tract.recipe.settings.recipe import Data


def data(name: str, directory: Path | None, **values) -> Data:
    classes = 10 if name == "cifar10" else 100
    return Data(
        **{"name": name, "image_size": 32, "classes": classes, "dir": directory and str(directory)}
        | values
    )


def fails(settings: Data) -> str:
    with pytest.raises(UserError) as caught:
        load_splits(settings)
    return str(caught.value)


def write(
    directory: Path, name: str = "cifar10", rows: int = 20, protocol: int = 2, key=str
) -> Path:
    """A set in the official layout with so many random rows a file; `key` makes the dictionaries'
    keys.
    """
    generator, labels = np.random.default_rng(0), cifar.LABELS[name]
    classes = {"cifar10": 10, "cifar100": 100}[name]
    train, test, meta = cifar.files(name)
    folder = directory / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder.mkdir()
    for file in train + test:
        pixels = generator.integers(0, 256, (rows, 3072), dtype=np.uint8)
        numbers = [int(n) % classes for n in range(rows)]
        content = {key("data"): pixels, key(labels): numbers, key("coarse_labels"): [0] * rows}
        (folder / file).write_bytes(pickle.dumps(content, protocol))
    names = [key(f"class {n}") for n in range(classes)]
    meta_key = "label_names" if name == "cifar10" else "fine_label_names"
    (folder / meta).write_bytes(pickle.dumps({key(meta_key): names}, protocol))
    return directory
