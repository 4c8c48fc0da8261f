"""Data sets by name: (image, label) pairs as PIL images, and where on disk they are looked for."""

from deit_tract.common.errors import UserError
from deit_tract.data.sets import imagenet
from deit_tract.data.sets.fine_grained import NAMES, load_transfer
from deit_tract.data.sets.made import Synthetic, _digits
from deit_tract.data.sets.on_disk import on_disk
from deit_tract.data.sets.readers import Images, Splits
from deit_tract.recipe.settings.recipe import Data


def load_images(data: Data) -> Splits:
    """The training and validation images of a recipe. Raises UserError where the data is not as the recipe says."""
    mode = "RGB" if data.channels == 3 else "L"
    if data.name == "digits":
        splits, classes = _digits(mode), 10
    elif data.name == "synthetic":
        splits, classes = (
            Splits(Synthetic(data, 2048), Synthetic(data, 64, first=2048)),
            data.classes,
        )
    else:
        splits = _checked(data, mode)
        classes = len(splits.train.classes)
    if classes != data.classes:
        raise UserError(
            "data.classes",
            f"{data.classes}, but the data has {classes}",
            f"set data.classes={classes}",
        )
    return splits


def _checked(data: Data, mode: str) -> Splits:
    """A recipe's images on disk, after its set's own checks."""
    if data.dir is None:
        raise UserError("data.dir", f"data set '{data.name}' lies on disk", "give --data-dir DIR")
    if data.name in NAMES:
        return Splits(*load_transfer(data.name, data.dir, mode, data.verify))
    official = data.name == "imagenet"
    splits = on_disk(data.dir, mode, ordered=official and data.verify)
    if official:
        imagenet.check_imagenet(*splits, whole=data.verify)
    check_classes(*splits)
    return splits


def check_classes(train: Images, val: Images) -> None:
    """Raises UserError where the parts do not have the same classes: a label would mean two things."""
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes)) or ["their order"]
        raise UserError(
            val.root,
            f"classes differ from those of {train.root}: {', '.join(odd[:5])}",
            "make them equal",
        )
