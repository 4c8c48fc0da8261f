"""The data sets of the transfer experiments as their authors published them: counts, files, sources."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_tract.data.readers import Images
from deit_tract.errors import UserError, UserErrors


class Facts(NamedTuple):
    """What a set must be."""

    title: str
    train: int  # images
    val: int
    classes: int
    folder: str  # torchvision's name for the set's folder below DIR
    source: str  # where a person gets it


FACTS = {
    "cifar10": Facts("CIFAR-10", 50_000, 10_000, 10, "cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": Facts("CIFAR-100", 50_000, 10_000, 100, "cifar-100-python", "https://www.cs.toronto.edu/~kriz/cifar.html"),
}  # fmt: skip


def folder_of(name: str, directory: str, files: Iterable[str]) -> Path:
    """The set's folder: DIR/FOLDER, or DIR where it is that folder itself.

    Raises UserError with all expected files and the set's source where one of `files` (paths below it) is missing.
    """
    facts, root = FACTS[name], Path(directory)
    if not root.is_dir():
        raise UserError(root, "no such folder", f"give --data-dir DIR with {facts.folder}/ inside")
    inner = root / facts.folder
    folder = root if root.name == facts.folder and not inner.is_dir() else inner
    files = list(files)
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        what = f"{len(missing)} of {len(files)} parts of {facts.title} are missing: {', '.join(missing)}"
        instead = f"expected are {', '.join(str(folder / file) for file in files)}; the set comes from {facts.source}"
        if all((root / part).is_dir() for part in ("train", "test")):
            instead += "; for class folders (train/CLASS, test/CLASS) set data.name=folder"
        raise UserError(folder, what, instead)
    return folder


def check(name: str, train: Images, val: Images) -> None:
    """Raises every difference from the official counts as UserErrors."""
    errors = [*_problems(name, "training", train), *_problems(name, "test", val)]
    if errors:
        raise UserErrors(errors)


def _problems(name: str, part: str, images: Images) -> Iterator[UserError]:
    facts, instead = FACTS[name], "complete it, or set data.verify=false for a part"
    expected = facts.train if part == "training" else facts.val
    if len(images) != expected:
        what = f"{len(images):,} {part} images, {facts.title} has {expected:,}"
        yield UserError(images.root, what, instead)
    present = np.bincount(images.labels, minlength=facts.classes)
    if len(images.classes) != facts.classes:
        yield UserError(images.root, f"{len(images.classes)} classes, {facts.title} has {facts.classes}", instead)
    elif not present.all():
        empty = ", ".join(images.classes[label] for label in np.flatnonzero(present == 0)[:5])
        yield UserError(images.root, f"{(present == 0).sum()} classes without a {part} image: {empty}", instead)
