"""What ImageNet-1k (ILSVRC2012) must be, and the sorting of its validation images.

Labels are positions in the sorted list of synsets, as torchvision, timm and every published checkpoint have them. The
devkit's own numbers (ILSVRC2012_ID) are in another order.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo
from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets.readers import HuggingFace, Images

SYNSET = re.compile(r"n\d{8}")
TRAIN, VAL = 1_281_167, 50_000
PER_CLASS = {TRAIN: (732, 1300), VAL: (50, 50)}  # images of a class, fewest and most


def check_imagenet(train: Images, val: Images, whole: bool = True) -> None:
    """Raises every difference from ImageNet as UserErrors; with `whole` false a part of it will do."""
    errors = [*problems(train, TRAIN, whole), *problems(val, VAL, whole)]
    if errors:
        raise UserErrors(errors)


def problems(images: Images, total: int, whole: bool = True) -> Iterator[UserError]:
    """What is not as in ImageNet: the classes and their order, and if `whole` the number of classes and images."""
    names, official = synsets(images), ImageNetInfo().label_names()
    odd = [name for name in names if name not in set(official)]
    if odd:
        what = f"{len(odd)} of {len(names)} classes are no synsets of ImageNet-1k: {_listed(odd)}"
        yield UserError(images.root, what, "for another set use data.name=folder")
    elif names != sorted(names):
        yield UserError(
            images.root,
            "its labels are not in the order of the sorted synsets",
            "number the classes anew",
        )
    if not whole:
        return
    missing = sorted(set(official) - set(names))
    if missing:
        what = f"{len(missing)} of 1,000 classes are missing: {_listed(missing)}"
        yield UserError(images.root, what, "add them, or set data.verify=false for a part")
    if len(images) != total:
        what = f"{len(images):,} images, ImageNet has {total:,}"
        yield UserError(images.root, what, "complete it, or set data.verify=false for a part")
    wrong = _odd_counts(images, names, *PER_CLASS[total])
    if wrong:
        low, high = PER_CLASS[total]
        span = f"{low}" if low == high else f"{low} to {high:,}"
        what = f"{len(wrong)} classes do not have {span} images: {_listed(wrong)}"
        yield UserError(images.root, what, "complete them, or set data.verify=false for a part")


def synsets(images: Images) -> list[str]:
    """The classes as synsets: their names, or on the Hugging Face hub, whose classes bear English names, what the first
    image of each is called (n01440764_18_n01440764.JPEG).
    """
    if not isinstance(images, HuggingFace) or all(
        SYNSET.fullmatch(name) for name in images.classes
    ):
        return images.classes
    names = list(images.classes)
    for label, first in zip(*np.unique(images.labels, return_index=True), strict=True):
        found = SYNSET.findall(images.name(int(first)))
        names[label] = found[-1] if found else names[label]
    return names


def _odd_counts(images: Images, names: list[str], low: int, high: int) -> list[str]:
    counts = np.bincount(images.labels, minlength=len(names))
    return [
        f"{name} has {n:,}" for name, n in zip(names, counts, strict=True) if not low <= n <= high
    ]


def _listed(words: list[str]) -> str:
    return ", ".join(words[:5]) + (" ..." if len(words) > 5 else "")


def read_labels(path: Path) -> dict[str, str]:
    """File name -> synset of the validation images: from lines `filename synset`, or from the devkit's folder.

    Raises UserError where the file says something else.
    """
    if path.is_dir():
        return _devkit(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            path, f"cannot be read ({error})", "give a text file or the devkit's folder"
        ) from None
    if lines and lines[0].strip().isdigit():
        return _devkit(path.parent)
    labels = {}
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or not SYNSET.fullmatch(words[1]):
            raise UserError(
                f"{path}:{number}", f"'{line}'", "a line is `filename synset`, as x.JPEG n01440764"
            )
        name = Path(words[0]).name
        if labels.setdefault(name, words[1]) != words[1]:
            raise UserError(
                f"{path}:{number}", f"{name} has two synsets, {labels[name]} and {words[1]}"
            )
    return labels


def _devkit(folder: Path) -> dict[str, str]:
    """From the ILSVRC2012 devkit: line n of the ground truth is the ILSVRC2012_ID of image n, named in meta.mat."""
    from scipy.io import loadmat

    data = folder / "data" if (folder / "data").is_dir() else folder
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    try:
        synsets = loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        numbers = [int(line) for line in truth.read_text().split()]
        return {
            f"ILSVRC2012_val_{n:08d}.JPEG": synset_of[number] for n, number in enumerate(numbers, 1)
        }
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        what = f"is not the ILSVRC2012 devkit ({type(error).__name__}: {error})"
        raise UserError(data, what, f"needs {truth.name} and meta.mat") from None


def sort_by_class(folder: Path, labels: dict[str, str]) -> int:
    """Move the images that lie loose in a folder into folders of their synsets; the number moved.

    Nothing is moved before all is known to go well, and nothing is overwritten; after an interruption the same call
    goes on. Raises UserErrors with every image that has no label, no synset of ImageNet, or its place taken.
    """
    loose = sorted(
        path.name for path in folder.iterdir() if path.name.lower().endswith(IMG_EXTENSIONS)
    )
    official, errors = set(ImageNetInfo().label_names()), []
    for name in loose:
        synset = labels.get(name)
        if synset is None:
            errors.append(UserError(folder / name, "has no label", "nothing was moved"))
        elif synset not in official:
            errors.append(
                UserError(
                    folder / name, f"{synset} is no synset of ImageNet-1k", "nothing was moved"
                )
            )
        elif (folder / synset / name).exists():
            errors.append(
                UserError(
                    folder / name,
                    f"is in {synset}/ too",
                    "remove one of the two; nothing was moved",
                )
            )
    if errors:
        raise UserErrors(errors)
    for name in loose:
        new = folder / labels[name] / name
        new.parent.mkdir(exist_ok=True)
        (folder / name).rename(new)
    return len(loose)
