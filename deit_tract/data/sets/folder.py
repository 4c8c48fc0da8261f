"""Any set of class folders, tars or Hugging Face data sets below a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.common.errors import UserError
from deit_tract.data.sets.hugging_face import open_hub, open_saved
from deit_tract.data.sets.images import Folders, Images, mode_of
from deit_tract.data.sets.tars import Tars
from deit_tract.recipe.settings.recipe import Data

NAMES = {"train": ("train",), "val": ("val", "validation", "test")}  # what a part may be called
LAYOUT = "expected DIR/train/CLASS/IMAGE, DIR/val/... (docs/data.md has the other layouts)"
FIX_VAL = (
    "sort each image into the folder of its synset: "
    "python tools/prepare.py imagenet DIR --fix-val LABELS"
)


def read_folder(data: Data, parts: Sequence[str]) -> list[Images]:
    """Read parts of a set that the user has sorted into classes."""
    return open_parts(data.dir, parts, mode_of(data))


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
    if not root.is_dir():
        raise UserError(root, "no such folder", "give --data-dir DIR with train/ and val/ inside")
    places = [place_of(root, part) for part in parts]
    return [_open(place, mode, ordered) for place in places]


def place_of(root: Path, part: str) -> Path:
    """Return a part's folder, else its tar, under our name or ImageNet's own."""
    names = NAMES[part]
    tars = [root / f"{prefix}{name}.tar" for prefix in ("", "ILSVRC2012_img_") for name in names]
    folders = [root / name for name in names]
    for place in (*filter(Path.is_dir, folders), *filter(Path.is_file, tars)):
        return place
    raise UserError(root, f"has no folder {' or '.join(names)}, nor such a .tar", LAYOUT)


def _open(place: Path, mode: str, ordered: bool) -> Images:
    """Tell the form by what the folder holds: folders, else tars, else a saved data set."""
    if place.is_file():
        return _open_tars(place, mode)
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
