"""Tiny ImageNet's validation part as its authors packed it: loose images and a list of labels.

Its training part, train/SYNSET/images/*.JPEG, is read as class folders.
"""

from pathlib import Path

import numpy as np

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, plural
from deit_tract.data.sets.images import Files, empty_classes

ANNOTATIONS = "val_annotations.txt"


def read_annotated(place: Path, mode: str) -> Files:
    """Read VAL/images with VAL/val_annotations.txt, lines `val_0.JPEG n03444034 0 32 44 62`.

    The classes are the sorted synsets of wnids.txt beside VAL, or without it those listed. Raises
    UserError on a line without a label, an unknown label, a repeated or missing image, or a class
    without an image.
    """
    file = place / ANNOTATIONS
    labels: dict[str, str] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        name, *rest = line.split("\t") if "\t" in line else line.split()
        if not rest or not rest[0].strip():
            raise UserError(f"{file}:{number}", "no label", "expected NAME.JPEG SYNSET ...")
        if name in labels:
            raise UserError(f"{file}:{number}", f"'{name}' is listed twice", "remove one of them")
        labels[name] = rest[0].strip()
    known = place.parent / "wnids.txt"
    classes = sorted(set(known.read_text("utf-8").split() if known.is_file() else labels.values()))
    other = sorted(set(labels.values()) - set(classes))
    if other:
        what = f"{plural(len(other), 'label')} not in {known.name}: {listed(other)}"
        raise UserError(file, what, "download the set again")
    folder = place / "images"
    missing = [name for name in labels if not (folder / name).is_file()]
    if missing:
        what = f"{plural(len(missing), 'image')} of {file.name} not there: {listed(missing)}"
        raise UserError(folder, what, "unpack the set again")
    rows = sorted((label, name) for name, label in labels.items())
    number = {name: label for label, name in enumerate(classes)}
    numbers = np.array([number[label] for label, _ in rows], np.int32)
    images = Files(folder, (name for _, name in rows), numbers, classes, mode)
    empty = empty_classes(images)
    if empty:
        what = f"no image of {plural(len(empty), 'class', 'classes')}: {listed(empty)}"
        raise UserError(file, what, "unpack the set again")
    return images
