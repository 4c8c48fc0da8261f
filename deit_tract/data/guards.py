"""What a run asks of its data before it starts: the data of before, validation images that open."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, plural
from deit_tract.data.sets.imagenet import synsets
from deit_tract.data.sets.images import Files, Splits

UNREADABLE = "cannot be read as an image"
REPAIR = (
    "replace or remove it (data.skip_unreadable is for training images only); "
    "tools/prepare.py finds all that cannot be read"
)


def fingerprint(data: Splits) -> dict[str, Any]:
    """What data is recognised by, wherever it lies and in any form: classes and counts.

    {"classes": names, "train": {"images": count, "labels": SHA-256 of all labels}, "val": ...}.
    No image is read.
    """
    parts = {part: _counted(images) for part, images in data._asdict().items()}
    return {"classes": class_names(data.train)} | parts


def class_names(images: Dataset) -> list[str]:
    """The names of the classes; a folder's name need not be Unicode."""
    names = [str(name).encode("utf-8", "surrogateescape") for name in synsets(images)]
    return [name.decode("utf-8", "backslashreplace") for name in names]


def _counted(images: Dataset) -> dict[str, Any]:
    labels = getattr(images, "labels", None)  # a detector's images have none
    if labels is None:
        return {"images": len(images)}
    digest = hashlib.sha256(np.ascontiguousarray(labels, np.int32)).hexdigest()
    return {"images": len(images), "labels": digest}


def other_classes(before: list[str], now: list[str]) -> str | None:
    """How the names of classes differ, in words; None if they do not."""
    if before == now:
        return None
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    if not gone and not new:
        return "the same classes in another order"
    return f"{listed(new, 3) or 'fewer classes'} instead of {listed(gone, 3) or 'fewer classes'}"


def other_images(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How the images of two fingerprints differ, in words; None if they do not."""
    differences = []
    for part in Splits._fields:
        old, new = before[part], now[part]
        if old["images"] != new["images"]:
            count = plural(new["images"], "image")
            differences.append(f"{part} has {count} instead of {old['images']:,}")
        elif old != new:
            differences.append(f"{part} has other counts of its classes")
    return "; ".join(differences) or None


@contextmanager
def of_validation() -> Iterator[None]:
    """Add to the error of a validation image that cannot be read what can be done about it."""
    try:
        yield
    except UserError as error:
        where, what = (*error.args, "")[:2]
        if not str(what).startswith(UNREADABLE):
            raise
        raise UserError(where, what, REPAIR) from None


def check_opens(images: Dataset, most: int = 1000, seconds: float = 2.0) -> None:
    """Raise UserError if an image file, of at most `most` over the set, has no image's header.

    An evaluation would end there after hours. The first bytes of a file are read, for at most some
    seconds: a slow disk is not made to wait for. Other forms than files are left out.
    """
    if not isinstance(images, Files):
        return
    until = time.monotonic() + seconds
    for index in range(0, len(images), max(1, len(images) // most)):
        if time.monotonic() > until:
            return
        try:
            with Image.open(images.open(index)):
                pass
        except Exception as error:  # a decoder raises anything on broken bytes
            what = f"{UNREADABLE} ({error})"
            raise UserError(images.where(index), what, REPAIR) from None
