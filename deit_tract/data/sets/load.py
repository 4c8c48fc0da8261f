"""Every data set by name: its reader, and what was published about its files.

The row of the same name in recipe/datasets.py has the counts and the source.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, Flowers102

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import listed
from deit_tract.data.sets import cifar, flowers102, voc
from deit_tract.data.sets.cars import read_cars
from deit_tract.data.sets.digits import read_digits
from deit_tract.data.sets.folder import read_folder
from deit_tract.data.sets.imagenet import imagenet_problems, read_imagenet
from deit_tract.data.sets.imagenet_v2 import read_imagenet_v2
from deit_tract.data.sets.images import PARTS, Splits
from deit_tract.data.sets.official import count_problems
from deit_tract.data.sets.split import keep_share
from deit_tract.data.sets.synthetic import read_synthetic
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Data


class Reader(NamedTuple):
    """How a data set is read, checked and fetched.

    read(data, parts[, detect]) gives the images of the parts, each "train" or "val".
    """

    read: Callable[..., list[Dataset]]
    fetch: type | None = None  # torchvision's class, which downloads the set
    md5: Mapping[str, str] = MappingProxyType({})  # of the published files
    problems: Callable = count_problems  # (name, part, images, complete) -> errors


READERS = {
    "cars": Reader(read_cars),
    "cifar10": Reader(cifar.read_cifar, CIFAR10, cifar.md5("cifar10")),
    "cifar100": Reader(cifar.read_cifar, CIFAR100, cifar.md5("cifar100")),
    "digits": Reader(read_digits),
    "flowers102": Reader(flowers102.read_flowers102, Flowers102, flowers102.MD5),
    "folder": Reader(read_folder),
    "imagenet": Reader(read_imagenet, problems=imagenet_problems),
    "imagenet_v2": Reader(read_imagenet_v2),
    "synthetic": Reader(read_synthetic),
    "voc": Reader(voc.read_voc),
    "voc2007": Reader(voc.read_voc, md5=voc.TARS),
}


def load_splits(data: Data, detect: FasterRcnn | None = None) -> Splits:
    """Load a recipe's training and validation images.

    Raises UserError if the data is not what the recipe and the set's publication say.
    """
    splits = Splits(*_read(data.name, data, PARTS, detect))
    check_same_classes(*splits)
    check_class_count(data, len(splits.train.classes))
    return splits._replace(train=keep_share(splits.train, data))


def load_validation(
    data: Data, detect: FasterRcnn | None = None, name: str | None = None
) -> Dataset:
    """Load only the images to evaluate on: those of data.name, or of another set by `name`.

    Raises UserError if they are not what the name says or do not have data.classes classes.
    """
    name = name or data.name
    (images,) = _read(name, data, ("val",), detect)
    classes = len(images.classes)
    if classes != data.classes:
        what = f"the model's number of classes is {data.classes}, but the data has {classes}"
        instead = "evaluate it on the data set that it was trained for"
        raise UserError(f"--data {name}", what, instead)
    return images


def load_part(data: Data, name: str, part: str) -> Dataset:
    """Load "train" or "val" of a data set by name, whatever its classes. UserError as above."""
    (images,) = _read(name, data, (part,), None)
    return images


def _read(name: str, data: Data, parts: Sequence[str], detect: FasterRcnn | None) -> list[Dataset]:
    if DATASETS[name].on_disk and data.dir is None:
        raise UserError("data.dir", f"data set '{name}' lies on disk", "give --data-dir DIR")
    reader = READERS[name]
    splits = reader.read(data, parts, detect) if detect else reader.read(data, parts)
    errors: list[UserError] = []
    for part, images in zip(parts, splits, strict=True):
        errors += reader.problems(name, part, images, data.verify)
    if errors:
        raise UserErrors(errors)
    return splits


def count_classes(data: Data) -> int:
    """Return how many classes the training images have. Raises UserError if they cannot be read."""
    (images,) = _read(data.name, data, ("train",), None)
    return len(images.classes)


def check_class_count(data: Data, classes: int) -> None:
    """Raise UserError if the recipe has another number of classes than its data."""
    if data.classes not in (None, classes):
        what = f"{data.classes}, but the data has {classes}"
        raise UserError("data.classes", what, f"set data.classes={classes}")


def check_same_classes(train: Dataset, val: Dataset) -> None:
    """Raise UserError if the parts have different classes: a label would mean two things."""
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes)) or ["their order"]
        what = f"classes differ from those of {train.root}: {listed(odd)}"
        raise UserError(val.root, what, "make them equal")
