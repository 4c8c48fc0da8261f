"""Data sets as their authors published them: files, counts, downloads."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed
from deit_tract.recipe.datasets import DATASETS

PART = "complete it, or set data.verify=false for a part"
KINDS = {"train": "training", "val": "validation"}


def folder_of(name: str, directory: str) -> Path:
    """Return the set's folder: DIR/FOLDER, or DIR if it is that folder itself.

    Raises UserError if there is no DIR.
    """
    root = Path(directory)
    folder = DATASETS[name].folder
    if not root.is_dir():
        raise UserError(root, "no such folder", f"give --data-dir DIR with {folder}/ inside")
    inner = root / folder
    return root if root.name == folder and not inner.is_dir() else inner


def need_parts(name: str, folder: Path, parts: Sequence[str]) -> None:
    """Raise UserError with all expected paths and the set's source if one of them is missing."""
    missing = [part for part in parts if not (folder / part).exists()]
    if not missing:
        return
    facts = DATASETS[name]
    what = f"{len(missing)} of {len(parts)} parts of {facts.title} are missing"
    paths = ", ".join(str(folder / part) for part in parts)
    instead = f"expected are {paths}; the set comes from {facts.source}"
    if all((folder.parent / part).is_dir() for part in ("train", "test")):
        instead += "; for class folders (train/CLASS, test/CLASS) set data.name=folder"
    raise UserError(folder, f"{what}: {', '.join(missing)}", instead)


def wrong_count(name: str, part: str, images: Dataset) -> Iterator[UserError]:
    """Yield an error if a part does not have as many images as were published."""
    facts = DATASETS[name]
    expected = getattr(facts, part)
    absent = getattr(images, "absent", ())
    if absent:
        what = f"{len(absent):,} {KINDS[part]} images are missing: {listed(absent)}"
        yield UserError(images.root, what, PART)
    elif expected is not None and len(images) != expected:
        what = f"{len(images):,} {KINDS[part]} images, {facts.title} has {expected:,}"
        yield UserError(images.root, what, PART)


def count_problems(
    name: str, part: str, images: Dataset, complete: bool = True
) -> Iterator[UserError]:
    """Yield what differs from the published set; nothing if a part of it will do."""
    facts = DATASETS[name]
    if not complete:
        return
    yield from wrong_count(name, part, images)
    if facts.classes is None or not hasattr(images, "labels"):
        return
    if len(images.classes) != facts.classes:
        what = f"{len(images.classes)} classes, {facts.title} has {facts.classes}"
        yield UserError(images.root, what, PART)
        return
    counts = np.bincount(images.labels, minlength=facts.classes)
    empty = [images.classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        what = f"{len(empty)} classes without a {KINDS[part]} image: {listed(empty)}"
        yield UserError(images.root, what, PART)


def download(name: str, fetch: type | None, directory: str) -> None:
    """Fetch a set from its authors into DIR/FOLDER; intact files there are not fetched again.

    fetch: torchvision's class of the set. Raises UserError if the source fails or is gone.
    """
    facts = DATASETS[name]
    if fetch is None:
        what = f"the official source of {facts.title} is gone"
        raise UserError("--download", what, f"it comes from {facts.source}")
    root = Path(directory)
    try:
        fetch(root.parent if root.name == facts.folder else root, download=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:  # no connection, a broken file
        what = f"{facts.title} cannot be fetched ({' '.join(str(error).split())})"
        raise UserError(facts.source, what, "fetch it by hand") from None


def changed_files(folder: Path, md5: Mapping[str, str]) -> Iterator[UserError]:
    """Yield an error for each file of a folder whose MD5 is not the published one."""
    for name, expected in md5.items():
        if not (folder / name).is_file():
            continue
        with open(folder / name, "rb") as content:
            found = hashlib.file_digest(content, "md5").hexdigest()
        if found != expected:
            what = f"differs from the official file (MD5 {found}, not {expected})"
            yield UserError(folder / name, what, "fetch it again")
