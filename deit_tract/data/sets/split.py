"""Parts of a set's images: held out for validation by their names, or a random share of them."""

import os

import numpy as np

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive
from deit_tract.common.text import listed, plural
from deit_tract.data.sets.images import Images, InMemory, Splits, empty_classes
from deit_tract.recipe.settings.recipe import Data


class Subset(Images):
    """Some of a set's images, with all of its classes."""

    def __init__(self, images: Images, rows: np.ndarray):
        self.images, self.rows = images, rows
        self.root, self.classes, self.mode = images.root, images.classes, images.mode
        self.labels = images.labels[rows]

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def where(self, index: int) -> str:
        return self.images.where(int(self.rows[index]))

    def open(self, index: int) -> object:
        return self.images.open(int(self.rows[index]))


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Tell whether an image is for validation, from its place below its part's folder.

    Every image is decided by itself: adding or removing files moves no other image. So a class
    keeps `share` of its images only on average.
    """
    drawn = derive(seed, f"split {os.fsencode(name).hex()}")
    return drawn < share * 2**63


def split_off(images: Images, data: Data) -> Splits:
    """Split images by data.split and data.split_seed.

    Raises UserError if a class has no training image left, or if there is no validation image.
    """
    share, seed = data.split, data.split_seed
    held_out = [is_held_out(images.name(index), share, seed) for index in range(len(images))]
    mask = np.array(held_out, bool)
    train = Subset(images, np.flatnonzero(~mask))
    val = Subset(images, np.flatnonzero(mask))
    if not len(val):
        what = f"holds out none of {plural(len(images), 'image')}"
        raise UserError("data.split", what, "raise it, or set data.split_seed")
    empty = empty_classes(train)
    if empty:
        what = f"{share:g} leaves no training image of {listed(empty)}"
        raise UserError("data.split", what, "add images, lower it, or set data.split_seed")
    return Splits(train, val)


def shared_count(data: Data, images: int) -> int:
    """Return how many of a set's training images data.share keeps."""
    return max(round(data.share * images), 1)


def keep_share(images: Images, data: Data) -> Images:
    """Return the training images that data.share keeps, in their order; all of them if it is 1."""
    if data.share == 1:
        return images
    generator = np.random.default_rng(derive(data.split_seed, "share"))
    kept = generator.permutation(len(images))[: shared_count(data, len(images))]
    rows = np.sort(kept)
    if isinstance(images, InMemory):  # stays so, for data.resident
        pixels, labels = images.pixels[rows], images.labels[rows]
        return InMemory(pixels, labels, images.classes, images.root, images.mode)
    return Subset(images, rows)
