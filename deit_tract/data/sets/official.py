"""The data sets of the transfer experiments as their authors published them: counts, files, sources."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets.readers import Images


class Facts(NamedTuple):
    """What a set must be."""

    title: str
    train: int  # images
    val: int
    classes: int
    folder: str  # torchvision's name for the set's folder below DIR
    source: str  # where a person gets it


_TORONTO = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CARS = (
    "Kaggle's jessicali9530/stanford-cars-dataset and the .mat files that "
    "https://github.com/pytorch/vision/issues/7545 names (Stanford's own page is gone since 2023)"
)
FACTS = {
    "cifar10": Facts("CIFAR-10", 50_000, 10_000, 10, "cifar-10-batches-py", _TORONTO),
    "cifar100": Facts("CIFAR-100", 50_000, 10_000, 100, "cifar-100-python", _TORONTO),
    "flowers102": Facts(
        "Flowers-102",
        2_040,
        6_149,
        102,
        "flowers-102",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "cars": Facts("Stanford Cars", 8_144, 8_041, 196, "stanford_cars", _CARS),
}


def folder_of(name: str, directory: str) -> Path:
    """The set's folder: DIR/FOLDER, or DIR where it is that folder itself. Raises UserError where DIR is none."""
    facts, root = FACTS[name], Path(directory)
    if not root.is_dir():
        raise UserError(root, "no such folder", f"give --data-dir DIR with {facts.folder}/ inside")
    inner = root / facts.folder
    return root if root.name == facts.folder and not inner.is_dir() else inner


def need(name: str, folder: Path, parts: Sequence[str]) -> None:
    """Raises UserError with all expected paths and the set's source where a file or folder of a set is missing."""
    missing = [part for part in parts if not (folder / part).exists()]
    if missing:
        facts = FACTS[name]
        what = f"{len(missing)} of {len(parts)} parts of {facts.title} are missing: {', '.join(missing)}"
        instead = f"expected are {', '.join(str(folder / part) for part in parts)}; the set comes from {facts.source}"
        if all((folder.parent / part).is_dir() for part in ("train", "test")):
            instead += "; for class folders (train/CLASS, test/CLASS) set data.name=folder"
        raise UserError(folder, what, instead)


def check_official(name: str, train: Images, val: Images) -> None:
    """Raises every difference from the official set as UserErrors."""
    errors = problems(name, train, val)
    if errors:
        raise UserErrors(errors)


def problems(name: str, train: Images, val: Images) -> list[UserError]:
    """What is not as in the official set: files, counts and classes."""
    facts = FACTS[name]
    parts = ((train, "training", facts.train), (val, "test", facts.val))
    return [error for part in parts for error in _problems(facts, *part)]


def _problems(facts: Facts, images: Images, part: str, expected: int) -> Iterator[UserError]:
    instead = "complete it, or set data.verify=false for a part"
    if images.absent:
        yield UserError(
            images.root,
            f"{len(images.absent):,} {part} images are missing: {_few(images.absent)}",
            instead,
        )
    elif len(images) != expected:
        yield UserError(
            images.root, f"{len(images):,} {part} images, {facts.title} has {expected:,}", instead
        )
    if len(images.classes) != facts.classes:
        yield UserError(
            images.root,
            f"{len(images.classes)} classes, {facts.title} has {facts.classes}",
            instead,
        )
        return
    empty = np.flatnonzero(np.bincount(images.labels, minlength=facts.classes) == 0)
    if len(empty):
        names = _few([images.classes[label] for label in empty])
        yield UserError(
            images.root, f"{len(empty)} classes without a {part} image: {names}", instead
        )


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:5]) + (" ..." if len(words) > 5 else "")
