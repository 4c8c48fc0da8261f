"""The data sets that a pretrained model is fine-tuned on, each in the layout its authors and torchvision have.

Training is on all that is not test: Flowers-102's train and validation parts together (2,040 images), Stanford Cars'
training part, whole photos, not cropped to their boxes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import Flowers102

from deit_tract.common.errors import UserError
from deit_tract.data.sets import cifar, official
from deit_tract.data.sets.readers import Images, Texts

NAMES = tuple(official.FACTS)
FLOWERS = ("jpg", "imagelabels.mat", "setid.mat")
CARS_TEST = (
    "cars_test_annos_withlabels.mat",
    "devkit/cars_test_annos_withlabels.mat",
)  # torchvision has the first
CARS = ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat")


def load_transfer(
    name: str, directory: str, mode: str = "RGB", verify: bool = True
) -> tuple[Images, Images]:
    """The training and test images of one of NAMES, in the order of the set's own lists.

    Raises UserError where a file is missing or is not what it should be; with `verify` also every difference from the
    official counts. Without, images that the lists name and that are not there are left out.
    """
    if name in cifar.TORCHVISION:
        return cifar.load_cifar(name, directory, mode, verify)
    splits = {"flowers102": _flowers, "cars": _cars}[name](
        official.folder_of(name, directory), mode
    )
    if verify:
        official.check_official(name, *splits)
    for images in splits:
        if not len(images):
            raise UserError(
                images.root,
                "holds none of the images that the set's lists name",
                "unpack them there",
            )
    return splits


class Photos(Images):
    """Image files of one folder, of which those that are not there go to `absent`."""

    def __init__(
        self, root: Path, names: Sequence[str], labels: np.ndarray, classes: list[str], mode: str
    ):
        self.root, self.classes, self.mode = root, classes, mode
        there = set(os.listdir(root))
        self.absent = [name for name in names if name not in there]
        self.labels = np.array(
            [label for name, label in zip(names, labels, strict=True) if name in there], np.int32
        )
        self._names = Texts(name for name in names if name in there)

    def name(self, index: int) -> str:
        return self._names[index]

    def open(self, index: int) -> str:
        return os.path.join(self.root, self.name(index))


def _flowers(folder: Path, mode: str) -> tuple[Photos, Photos]:
    """Flowers-102 (Nilsback and Zisserman 2008): trnid and valid are trained on, tstid is the test."""
    official.need("flowers102", folder, FLOWERS)
    label_of = _read(folder / "imagelabels.mat", "labels").astype(np.int64)
    classes = list(Flowers102.classes)
    _check_labels(folder / "imagelabels.mat", label_of, len(classes))
    parts = [
        _read(folder / "setid.mat", part).astype(np.int64) for part in ("trnid", "valid", "tstid")
    ]
    for ids in parts:
        if len(ids) and not 1 <= ids.min() <= ids.max() <= len(label_of):
            raise UserError(
                folder / "setid.mat", f"names images {ids.min()} to {ids.max()} of {len(label_of)}"
            )
    return tuple(
        Photos(
            folder / "jpg",
            [f"image_{n:05d}.jpg" for n in ids],
            label_of[ids - 1] - 1,
            classes,
            mode,
        )
        for ids in (np.concatenate(parts[:2]), parts[2])
    )


def _cars(folder: Path, mode: str) -> tuple[Photos, Photos]:
    """Stanford Cars (Krause et al. 2013) with the labels of its test part, which came later and lie in either place."""
    test = next((place for place in CARS_TEST if (folder / place).exists()), CARS_TEST[0])
    official.need("cars", folder, [*CARS, test])
    classes = [str(name) for name in _read(folder / "devkit/cars_meta.mat", "class_names")]
    splits = []
    for images, file in (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", test)):
        rows = _read(folder / file, "annotations")
        if not {"class", "fname"} <= set(rows.dtype.names or ()):
            raise UserError(
                folder / file, "has no labels", f"{CARS_TEST[0]} is the file with labels"
            )
        labels = rows["class"].astype(np.int64)
        _check_labels(folder / file, labels, len(classes))
        root = folder / images
        root = root / images if (root / images).is_dir() else root  # as Kaggle's archive unpacks
        splits.append(Photos(root, rows["fname"].tolist(), labels - 1, classes, mode))
    return tuple(splits)


def _check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    if len(labels) and not 1 <= labels.min() <= labels.max() <= classes:
        raise UserError(
            path,
            f"has labels from {labels.min()} to {labels.max()} for {classes} classes",
            "get it anew",
        )


def _read(path: Path, key: str) -> Any:
    """An entry of a Matlab file as an array of at least one dimension."""
    from scipy.io import loadmat

    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[key])
    except KeyError:
        raise UserError(path, f"has no entry '{key}'", "get it anew") from None
    except Exception as error:  # broken bytes make the reader raise what it likes
        raise UserError(path, f"cannot be read as a Matlab file ({error})", "get it anew") from None
