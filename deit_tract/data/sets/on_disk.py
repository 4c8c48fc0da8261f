"""Class folders, tars and Hugging Face data sets found below a folder."""

import importlib.util
import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.common.errors import UserError
from deit_tract.data.sets.readers import Folders, HuggingFace, Images, Splits, Tars

TRAIN, VAL = ("train",), ("val", "validation", "test")  # what the parts of a set may be called
LAYOUT = "expected DIR/train/CLASS/IMAGE, DIR/val/... (docs/data.md has the other layouts)"
FIX_VAL = "sort each image into the folder of its synset: python tools/prepare.py imagenet DIR --fix-val LABELS"


def on_disk(directory: str, mode: str = "RGB", ordered: bool = False) -> Splits:
    """The two parts of a set below a folder, each in any form of `readers`, or those of `hfds/NAME`.

    `ordered` insists on the reference's order. Raises UserError where a part is not there or not sorted by class.
    """
    return Splits(*parts_on_disk(directory, mode, ordered, (TRAIN, VAL)))


def parts_on_disk(
    directory: str, mode: str, ordered: bool, parts: tuple[tuple[str, ...], ...]
) -> list[Images]:
    """`on_disk` for the parts that are asked for, each by the names that it may have."""
    prefix, _, name = directory.partition("/")
    if prefix == "hfds" and name:
        return [_hub(name, names, mode, ordered) for names in parts]
    root = Path(directory)
    if not root.is_dir():
        raise UserError(root, "no such folder", "give --data-dir DIR with train/ and val/ inside")
    places = [place_of(root, names) for names in parts]
    return [_open(place, mode, ordered) for place in places]


def place_of(root: Path, names: tuple[str, ...]) -> Path:
    """A part's folder, else its tar, under our name or ImageNet's own."""
    tars = [root / f"{prefix}{name}.tar" for prefix in ("", "ILSVRC2012_img_") for name in names]
    for place in [root / name for name in names if (root / name).is_dir()] + [
        tar for tar in tars if tar.is_file()
    ]:
        return place
    raise UserError(root, f"has no folder {' or '.join(names)}, nor such a .tar", LAYOUT)


def _open(place: Path, mode: str, ordered: bool) -> Images:
    """The form is told by what lies in the folder: any folders, else tars, else a saved Hugging Face data set."""
    if place.is_file():
        return _tars(place, mode)
    with os.scandir(place) as entries:
        files = []
        for entry in entries:
            if entry.is_dir():
                return Folders(place, mode)
            files.append(entry.name)
    if "state.json" in files:
        return _saved(place, mode, ordered)
    if any(name.endswith(".tar") for name in files):
        return _tars(place, mode)
    images = [name for name in files if name.lower().endswith(IMG_EXTENSIONS)]
    if images:
        instead = FIX_VAL if images[0].startswith("ILSVRC2012_val") else LAYOUT
        raise UserError(place, f"holds {len(images):,} images, but no class folders", instead)
    return Folders(place, mode)  # which says what is missing


def _tars(place: Path, mode: str) -> Tars:
    tars = Tars(place, mode)
    if {"", "."} & set(tars.classes):
        instead = (
            f"unpack it to {place.with_suffix('')} and {FIX_VAL}" if "val" in place.name else LAYOUT
        )
        raise UserError(place, "holds images outside of class folders", instead)
    return tars


def _saved(place: Path, mode: str, ordered: bool) -> HuggingFace:
    """What `datasets` wrote by save_to_disk; timm's reader knows the hub and its caches alone."""
    _need_datasets()
    from datasets import load_from_disk

    try:
        return HuggingFace(load_from_disk(str(place)), place, mode, ordered)
    except (OSError, ValueError) as error:
        raise UserError(
            place, f"cannot be read as a saved data set ({error})", "save it again"
        ) from None


def _hub(name: str, parts: tuple[str, ...], mode: str, ordered: bool) -> HuggingFace:
    """The first of a set's parts that exists, through timm's reader."""
    _need_datasets()
    from timm.data.readers.reader_hfds import ReaderHfds

    failures = []
    for part in parts:
        try:
            return HuggingFace(
                ReaderHfds(name, split=part).dataset, f"hfds/{name}/{part}", mode, ordered
            )
        except UserError:
            raise
        except (
            Exception
        ) as error:  # the hub, its cache and the readers of every format raise what they like
            failures.append(" ".join(str(error).split()))
    raise UserError(
        f"hfds/{name}",
        f"cannot be loaded ({failures[0]})",
        "is the name right, and access granted?",
    )


def _need_datasets() -> None:
    if importlib.util.find_spec("datasets") is None:
        raise UserError(
            "data.dir", "Hugging Face data sets need the package 'datasets'", "pip install datasets"
        )
