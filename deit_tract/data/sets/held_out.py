"""The images that a model is evaluated on: a set's validation part, ImageNet-V2, ReaL's labels."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets import imagenet
from deit_tract.data.sets.load import load_images
from deit_tract.data.sets.on_disk import VAL, parts_on_disk
from deit_tract.data.sets.readers import Folders, Images
from deit_tract.recipe.settings.recipe import Data

V2 = "imagenet_v2"
V2_COUNT = 10_000
APART = (
    "imagenet",
    "folder",
)  # their parts lie apart, so that the training images need not be there
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


def load_validation(name: str, data: Data) -> Dataset:
    """The validation images of a data set, which is data.name or ImageNet-V2.

    Raises UserError where they are not what the name says or have another number of classes than data.classes.
    """
    if name not in (V2, *APART):
        try:
            return load_images(data).val
        except UserError as error:
            raise (
                _other_classes(name, error) if error.args[0] == "data.classes" else error
            ) from None
    if data.dir is None:
        raise UserError(f"--data {name}", "lies on disk", "give --data-dir DIR")
    mode = "RGB" if data.channels == 3 else "L"
    images = _v2(Path(data.dir), mode, data.verify) if name == V2 else _validation(name, data, mode)
    classes = len(images.classes)
    if classes != data.classes:
        raise _other_classes(name, UserError("", f"{data.classes}, but the data has {classes}"))
    return images


def _other_classes(name: str, error: UserError) -> UserError:
    what = f"the model's number of classes is {error.args[1]}"
    return UserError(f"--data {name}", what, "evaluate it on the data set that it was trained for")


def _validation(name: str, data: Data, mode: str) -> Images:
    official = name == "imagenet"
    (images,) = parts_on_disk(data.dir, mode, official and data.verify, (VAL,))
    errors = list(imagenet.problems(images, imagenet.VAL, data.verify)) if official else []
    if errors:
        raise UserErrors(errors)
    return images


def _v2(root: Path, mode: str, whole: bool) -> Images:
    """ImageNet-V2 as published: folders 0 to 999, the positions of the sorted synsets; or folders named as synsets."""
    if not root.is_dir():
        raise UserError(
            root, "no such folder", "give --data-dir DIR with the folders 0 to 999 inside"
        )
    inside = sorted(path.name for path in root.glob("imagenetv2-*") if path.is_dir())
    if inside:
        raise UserError(root, f"holds {', '.join(inside)}", "give one of them as --data-dir")
    images, official = Folders(root, mode), ImageNetInfo().label_names()
    place = {synset: position for position, synset in enumerate(official)}
    if all(name.isdecimal() for name in images.classes):
        place = {
            str(position): position for position in range(len(official))
        }  # as text, 10 stands before 2
    odd = [name for name in images.classes if name not in place]
    if odd:
        what = f"{len(odd)} of {len(images.classes)} folders are no class of ImageNet-1k: {', '.join(odd[:5])}"
        raise UserError(root, what, "ImageNet-V2 has the folders 0 to 999")
    if whole and (len(images.classes), len(images)) != (len(official), V2_COUNT):
        what = f"{len(images):,} images of {len(images.classes):,} classes, ImageNet-V2 has {V2_COUNT:,} of 1,000"
        raise UserError(root, what, "complete it, or give --no-verify for a part")
    images.labels = np.array([place[name] for name in images.classes], np.int32)[images.labels]
    images.classes = official
    return images


def class_names(images: Dataset, classes: int) -> list[str]:
    """The names of a set's classes; their numbers where it has none."""
    names = getattr(images, "classes", None)
    if names is None or len(names) != classes:
        return [str(label) for label in range(classes)]
    return imagenet.synsets(images) if isinstance(images, Images) else [str(name) for name in names]


def described(names: Sequence[str]) -> list[str]:
    """Synsets with what they mean, `n01440764 tench`; other names as they are."""
    info, known = ImageNetInfo(), set(ImageNetInfo().label_names())
    return [
        f"{n} {info.label_name_to_description(n).partition(',')[0]}" if n in known else n
        for n in names
    ]


def real(file: Path, images: Dataset, whole: bool) -> list[list[int]]:
    """ReaL's answers for each validation image of ImageNet, in the images' order; an empty list is no answer.

    The file (real.json of google-research/reassessed-imagenet) is a list in the order of ILSVRC2012_val_00000001 to
    _00050000, which is not that of images sorted by class. Raises UserError where file or images are others; `whole`
    insists on 50,000 entries.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            file, f"cannot be read as JSON ({error})", "give ReaL's real.json"
        ) from None
    if not isinstance(entries, list) or not all(_is_answer(entry) for entry in entries):
        raise UserError(file, "is no list of lists of classes 0 to 999", "give ReaL's real.json")
    if whole and len(entries) != imagenet.VAL:
        what = f"{len(entries):,} entries, ReaL has {imagenet.VAL:,}"
        raise UserError(file, what, "complete it, or give --no-verify for a part")
    if not isinstance(images, Images) or imagenet.synsets(images) != ImageNetInfo().label_names():
        what = "its labels are for ImageNet's validation images and their 1,000 classes"
        raise UserError("--real", what, "give --data imagenet")
    numbers = [_number(images, index) for index in range(len(images))]
    if max(numbers) > len(entries):
        raise UserError(file, f"{len(entries):,} entries, but the data has image {max(numbers)}")
    return [entries[number - 1] for number in numbers]


def _is_answer(entry: object) -> bool:
    return isinstance(entry, list) and all(
        type(label) is int and 0 <= label < 1000 for label in entry
    )


def _number(images: Images, index: int) -> int:
    """Which of ILSVRC2012's validation images it is, from 1."""
    found = NUMBERED.search(images.name(index))
    if found is None or int(found[1]) == 0:
        what = "its name does not say which validation image it is"
        raise UserError(
            images.where(index), what, "ReaL needs ILSVRC2012_val_00000001.JPEG and so on"
        )
    return int(found[1])
