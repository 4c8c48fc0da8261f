"""Flowers-102 (Nilsback and Zisserman 2008) in its authors' and torchvision's layout.

It is trained on the training and validation parts together (2,040 images), evaluated on the test.
"""

from collections.abc import Sequence

import numpy as np
from torchvision.datasets import Flowers102

from deit_tract.common.errors import UserError
from deit_tract.data.sets.images import ListedFiles, mode_of
from deit_tract.data.sets.matlab import labels_from_one, read_matlab
from deit_tract.data.sets.official import folder_of, need_parts
from deit_tract.recipe.settings.recipe import Data

LISTS = {"train": ("trnid", "valid"), "val": ("tstid",)}
MD5 = {  # as in torchvision's flowers102.py
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}


def read_flowers102(data: Data, parts: Sequence[str]) -> list[ListedFiles]:
    """Read parts of the set in the order of its lists. Raises UserError on other files."""
    folder = folder_of(data.name, data.dir)
    need_parts(data.name, folder, ("jpg", *MD5))
    classes = list(Flowers102.classes)
    path = folder / "imagelabels.mat"
    labels = labels_from_one(path, read_matlab(path, "labels"), len(classes))
    splits = []
    for part in parts:
        ids = [read_matlab(folder / "setid.mat", key).astype(np.int64) for key in LISTS[part]]
        ids = np.concatenate(ids)
        if len(ids) and not 1 <= ids.min() <= ids.max() <= len(labels):
            what = f"names images {ids.min()} to {ids.max()} of {len(labels)}"
            raise UserError(folder / "setid.mat", what)
        names = [f"image_{n:05d}.jpg" for n in ids]
        splits.append(ListedFiles(folder / "jpg", names, labels[ids - 1], classes, mode_of(data)))
    return splits
