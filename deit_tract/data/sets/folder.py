"""Any set of class folders, tars, lists or Hugging Face data sets below a folder.

DIR/train/CLASS/IMAGE, DIR/val/CLASS/IMAGE     a part may be a tar or a saved data set, too
DIR/CLASS/IMAGE                                with data.split
DIR/train.csv, DIR/val.csv                     lines path,label below such a header
DIR/labels.csv, or FILE.csv for DIR            with a column split, or with data.split
DIR/train/SYNSET/images, DIR/val/images        Tiny ImageNet, with val/val_annotations.txt
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed
from deit_tract.data.sets import labels_csv
from deit_tract.data.sets.hugging_face import open_hub, open_saved
from deit_tract.data.sets.images import Folders, Images, mode_of
from deit_tract.data.sets.labels_csv import Row
from deit_tract.data.sets.split import split_off
from deit_tract.data.sets.tars import Tars
from deit_tract.data.sets.tiny_imagenet import ANNOTATIONS, read_annotated
from deit_tract.recipe.settings.recipe import Data

NAMES = {"train": ("train",), "val": ("val", "validation", "test")}  # what a part may be called
LAYOUT = "expected DIR/train/CLASS/IMAGE, DIR/val/... (docs/data.md has the other layouts)"
FIX_VAL = (
    "sort each image into the folder of its synset: "
    "python tools/prepare.py imagenet DIR --fix-val LABELS"
)
SPLIT = "set data.split=0.1 to hold out a tenth of the training images"


class Layout(NamedTuple):
    """How a set lies on disk, in words, and where its parts are; None for a part without place."""

    words: str
    train: Path | None
    val: Path | None
    listed: bool = False  # by CSV files


def read_folder(data: Data, parts: Sequence[str]) -> list[Images]:
    """Read parts of a set in any layout of this file.

    Without validation images of its own they are those that data.split holds out. Raises UserError
    if a part is missing or not sorted into classes.
    """
    if data.dir.startswith("hfds/"):
        return open_parts(data.dir, parts, mode_of(data))
    layout = find_layout(Path(data.dir))
    read = _read_listed if layout.listed else _read_places
    splits = read(layout, data, parts)
    return [splits[part] for part in parts]


def find_layout(root: Path) -> Layout:
    """Tell a set's layout by what lies below `root`. Raises UserError if it is none of them."""
    if root.is_file() and root.suffix.lower() == ".csv":
        return Layout("one CSV file", root, None, listed=True)
    _need_folder(root)
    train, val = (_find_place(root, part) for part in NAMES)
    csvs = _find_csvs(root)
    if csvs and not (train and (train.is_file() or _folders(train))):
        return csvs
    if val is not None and (val / ANNOTATIONS).is_file():
        return Layout("Tiny ImageNet's own layout", train, val)
    if train or val:
        return Layout("a folder per part", train, val)
    folders = _folders(root)
    inner = [name for name in folders if _find_place(root / name, "train")]
    if inner:
        what = f"has no folder train, but {root / inner[0]} has"
        raise UserError(root, what, f"give --data-dir {root / inner[0]}")
    if len(folders) < 2:
        raise _missing(root, "train", LAYOUT)
    return Layout("class folders", root, None)


def open_parts(
    directory: str, parts: Sequence[str], mode: str = "RGB", ordered: bool = False
) -> list[Images]:
    """Open parts of a set below a folder, each in any form, or of the hub's `hfds/NAME`.

    `ordered` insists on the reference's order. Raises UserError if a part is missing or not sorted
    into classes.
    """
    prefix, _, name = directory.partition("/")
    if prefix == "hfds" and name:
        return [open_hub(name, NAMES[part], mode, ordered) for part in parts]
    root = Path(directory)
    _need_folder(root)
    places = [place_of(root, part) for part in parts]
    return [_open(place, mode, ordered) for place in places]


def place_of(root: Path, part: str) -> Path:
    """Return a part's folder, else its tar, under our name or ImageNet's own."""
    place = _find_place(root, part)
    if place is None:
        raise _missing(root, part, LAYOUT)
    return place


def _missing(root: Path, part: str, instead: str) -> UserError:
    names = " or ".join(NAMES[part])
    return UserError(root, f"has no folder {names}, nor such a .tar", instead)


def _need_folder(root: Path) -> None:
    if not root.is_dir():
        raise UserError(root, "no such folder", "give --data-dir DIR with train/ and val/ inside")


def _find_place(root: Path, part: str) -> Path | None:
    names = NAMES[part]
    tars = [root / f"{prefix}{name}.tar" for prefix in ("", "ILSVRC2012_img_") for name in names]
    folders = [root / name for name in names]
    places = (*filter(Path.is_dir, folders), *filter(Path.is_file, tars))
    return next(iter(places), None)


def _find_csvs(root: Path) -> Layout | None:
    train = root / "train.csv"
    if train.is_file():
        others = (root / f"{name}.csv" for name in NAMES["val"])
        return Layout("a CSV file per part", train, next(filter(Path.is_file, others), None), True)
    whole = root / "labels.csv"
    return Layout("one CSV file", whole, None, True) if whole.is_file() else None


def _folders(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


# ---- folders, tars, saved data sets --------------------------------------------------------------


def _read_places(layout: Layout, data: Data, parts: Sequence[str]) -> dict[str, Images]:
    places = {"train": layout.train, "val": layout.val}
    root = Path(data.dir)
    if layout.train is None and "train" in parts:
        raise _missing(root, "train", LAYOUT)
    if layout.val is not None:
        return {part: _open(places[part], mode_of(data)) for part in parts}
    if data.split is None:
        if "val" in parts:
            raise _missing(root, "val", SPLIT)
        return {"train": _open(layout.train, mode_of(data))}
    return split_off(_open(layout.train, mode_of(data)), data)._asdict()


def _open(place: Path, mode: str, ordered: bool = False) -> Images:
    """Tell the form by what the folder holds: folders, else tars, else a saved data set."""
    if place.is_file():
        return _open_tars(place, mode)
    if (place / ANNOTATIONS).is_file():
        return read_annotated(place, mode)
    with os.scandir(place) as entries:
        files = []
        for entry in entries:
            if entry.is_dir():
                return Folders(place, mode)
            files.append(entry.name)
    if "state.json" in files:
        return open_saved(place, mode, ordered)
    if any(name.endswith(".tar") for name in files):
        return _open_tars(place, mode)
    images = [name for name in files if name.lower().endswith(IMG_EXTENSIONS)]
    if images:
        instead = FIX_VAL if images[0].startswith("ILSVRC2012_val") else LAYOUT
        raise UserError(place, f"holds {len(images):,} images, but no class folders", instead)
    return Folders(place, mode)  # which raises the error for an empty folder


def _open_tars(place: Path, mode: str) -> Tars:
    tars = Tars(place, mode)
    if {"", "."} & set(tars.classes):
        fix = f"unpack it to {place.with_suffix('')} and {FIX_VAL}"
        instead = fix if "val" in place.name else LAYOUT
        raise UserError(place, "holds images outside of class folders", instead)
    return tars


# ---- CSV files -----------------------------------------------------------------------------------


def _read_listed(layout: Layout, data: Data, parts: Sequence[str]) -> dict[str, Images]:
    files = {"train": layout.train, "val": layout.val or layout.train}
    rows = {"train": labels_csv.read_rows(layout.train)}
    if layout.val is not None:
        rows["val"] = labels_csv.read_rows(layout.val)
    elif rows["train"][0].split:
        rows = _by_column(layout.train, rows["train"])
    labels_csv.check_once([(files[part], row) for part in rows for row in rows[part]])
    classes = sorted({row.label for row in rows["train"]})
    if "val" in rows:
        labels_csv.check_labels(files["val"], rows["val"], classes)
        return {
            part: labels_csv.to_images(files[part], rows[part], classes, mode_of(data))
            for part in parts
        }
    images = labels_csv.to_images(files["train"], rows["train"], classes, mode_of(data))
    if data.split is not None:
        return split_off(images, data)._asdict()
    if "val" in parts:
        what = "lists no validation images: it has no column split"
        raise UserError(layout.train, what, f"add one, or {SPLIT}")
    return {"train": images}


def _by_column(file: Path, rows: list[Row]) -> dict[str, list[Row]]:
    """Sort rows into parts by their column `split`. Raises UserError if a part has none."""
    known = [name for names in NAMES.values() for name in names]
    for row in rows:
        if row.split not in known:
            what = f"'{row.split}' is not a split"
            raise UserError(f"{file}:{row.line}", what, f"write one of {', '.join(known)}")
    there = {row.split for row in rows}
    parts = {}
    for part, names in NAMES.items():
        name = next((name for name in names if name in there), None)
        if name is None:
            what = f"no row with split {' or '.join(names)}; there are {listed(sorted(there))}"
            raise UserError(file, what, "add some, or drop the column and set data.split")
        parts[part] = [row for row in rows if row.split == name]
    return parts
