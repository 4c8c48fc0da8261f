"""ImageNet-V2 (Recht et al. 2019), 10,000 images for evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed
from deit_tract.data.sets.images import Folders, mode_of
from deit_tract.recipe.settings.recipe import Data


def read_imagenet_v2(data: Data, parts: Sequence[str]) -> list[Folders]:
    """Read the set as published: folders 0 to 999, the positions of the sorted synsets.

    Folders named as synsets are read too. Raises UserError if there are others.
    """
    root = Path(data.dir)
    if not root.is_dir():
        instead = "give --data-dir DIR with the folders 0 to 999 inside"
        raise UserError(root, "no such folder", instead)
    inside = sorted(path.name for path in root.glob("imagenetv2-*") if path.is_dir())
    if inside:
        raise UserError(root, f"holds {', '.join(inside)}", "give one of them as --data-dir")
    images = Folders(root, mode_of(data))
    official = ImageNetInfo().label_names()
    names = official
    if all(name.isdecimal() for name in images.classes):
        names = [str(position) for position in range(len(official))]  # as text, 10 is before 2
    place = {name: position for position, name in enumerate(names)}
    odd = [name for name in images.classes if name not in place]
    if odd:
        what = f"{len(odd)} of {len(images.classes)} folders are not classes of ImageNet-1k"
        raise UserError(root, f"{what}: {listed(odd)}", "ImageNet-V2 has the folders 0 to 999")
    images.labels = np.array([place[name] for name in images.classes], np.int32)[images.labels]
    images.classes = official
    return [images for _ in parts]
