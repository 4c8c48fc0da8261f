"""ImageNet-1k (ILSVRC2012): what it must be.

Labels are positions in the sorted list of synsets, as torchvision, timm and every published
checkpoint have them. The devkit's own numbers (ILSVRC2012_ID) are in another order.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from timm.data import ImageNetInfo

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed
from deit_tract.data.sets.folder import open_parts
from deit_tract.data.sets.hugging_face import HuggingFace
from deit_tract.data.sets.images import Images, mode_of
from deit_tract.data.sets.official import PART, wrong_count
from deit_tract.recipe.settings.recipe import Data

SYNSET = re.compile(r"n\d{8}")
PER_CLASS = {"train": (732, 1300), "val": (50, 50)}  # images of a class, fewest and most


def read_imagenet(data: Data, parts: Sequence[str]) -> list[Images]:
    """Read parts of ImageNet in any form that class folders may have."""
    return open_parts(data.dir, parts, mode_of(data), ordered=data.verify)


def imagenet_problems(
    name: str, part: str, images: Images, complete: bool = True
) -> Iterator[UserError]:
    """Yield what differs from ImageNet: the classes, their order, and if `complete` the counts."""
    names = synsets(images)
    official = ImageNetInfo().label_names()
    odd = [name for name in names if name not in set(official)]
    if odd:
        what = f"{len(odd)} of {len(names)} classes are not synsets of ImageNet-1k: {listed(odd)}"
        yield UserError(images.root, what, "for another set use data.name=folder")
    elif names != sorted(names):
        what = "its labels are not in the order of the sorted synsets"
        yield UserError(images.root, what, "renumber the classes")
    if not complete:
        return
    missing = sorted(set(official) - set(names))
    if missing:
        what = f"{len(missing)} of 1,000 classes are missing: {listed(missing)}"
        yield UserError(images.root, what, "add them, or set data.verify=false for a part")
    yield from wrong_count(name, part, images)
    low, high = PER_CLASS[part]
    counts = zip(names, np.bincount(images.labels, minlength=len(names)), strict=True)
    wrong = [f"{name} has {count:,}" for name, count in counts if not low <= count <= high]
    if wrong:
        span = f"{low}" if low == high else f"{low} to {high:,}"
        what = f"{len(wrong)} classes do not have {span} images: {listed(wrong)}"
        yield UserError(images.root, what, PART)


def synsets(images: Images) -> list[str]:
    """Return the names of the classes: of ImageNet's, their synsets.

    On the Hugging Face hub these have English names, and the first image of each class tells its
    synset (n01440764_18_n01440764.JPEG).
    """
    named = all(SYNSET.fullmatch(name) for name in images.classes)
    if named or not isinstance(images, HuggingFace):
        return images.classes
    names = list(images.classes)
    for label, first in zip(*np.unique(images.labels, return_index=True), strict=True):
        found = SYNSET.findall(images.name(int(first)))
        names[label] = found[-1] if found else names[label]
    return names


def described(names: Sequence[str]) -> list[str]:
    """Add to synsets what they mean, `n01440764 tench`; other names stay as they are."""
    info = ImageNetInfo()
    known = set(info.label_names())

    def describe(name: str) -> str:
        return f"{name} {info.label_name_to_description(name).partition(',')[0]}"

    return [describe(name) if name in known else name for name in names]
