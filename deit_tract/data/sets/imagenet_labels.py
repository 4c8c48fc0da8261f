"""Labels of ImageNet's validation images: the devkit's, to sort them by class, and ReaL's."""

import json
import re
from pathlib import Path

from timm.data import ImageNetInfo
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets.imagenet import SYNSET, synsets
from deit_tract.data.sets.images import Images
from deit_tract.recipe.datasets import DATASETS

NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_labels(path: Path) -> dict[str, str]:
    """Read file name -> synset from lines `filename synset`, or from the devkit's folder.

    Raises UserError if the file contains anything else.
    """
    if path.is_dir():
        return _read_devkit(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        instead = "give a text file or the devkit's folder"
        raise UserError(path, f"cannot be read ({error})", instead) from None
    if lines and lines[0].strip().isdigit():
        return _read_devkit(path.parent)
    labels = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        words = line.replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or not SYNSET.fullmatch(words[1]):
            raise UserError(where, f"'{line}'", "a line is `filename synset`, as x.JPEG n01440764")
        name = Path(words[0]).name
        if labels.setdefault(name, words[1]) != words[1]:
            raise UserError(where, f"{name} has two synsets, {labels[name]} and {words[1]}")
    return labels


def _read_devkit(folder: Path) -> dict[str, str]:
    """Read the devkit: line n of the ground truth is image n's ILSVRC2012_ID, named in meta.mat."""
    from scipy.io import loadmat

    data = folder / "data" if (folder / "data").is_dir() else folder
    truth = data / "ILSVRC2012_validation_ground_truth.txt"
    try:
        rows = loadmat(data / "meta.mat", squeeze_me=True)["synsets"]
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        found = [synset_of[int(line)] for line in truth.read_text().split()]
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        what = f"is not the ILSVRC2012 devkit ({type(error).__name__}: {error})"
        raise UserError(data, what, f"needs {truth.name} and meta.mat") from None
    return {f"ILSVRC2012_val_{n:08d}.JPEG": synset for n, synset in enumerate(found, 1)}


def sort_by_class(folder: Path, labels: dict[str, str]) -> int:
    """Move a folder's loose images into folders of their synsets and return how many were moved.

    Nothing is moved before all is known to go well, and nothing is overwritten; after an
    interruption the same call continues. Raises UserErrors with every image that has no label, no
    synset of ImageNet, or whose place is taken.
    """
    names = sorted(path.name for path in folder.iterdir())
    loose = [name for name in names if name.lower().endswith(IMG_EXTENSIONS)]
    official = set(ImageNetInfo().label_names())
    errors = []
    for name in loose:
        synset = labels.get(name)
        instead = "nothing was moved"
        if synset is None:
            what = "has no label"
        elif synset not in official:
            what = f"{synset} is not a synset of ImageNet-1k"
        elif (folder / synset / name).exists():
            what = f"is in {synset}/ too"
            instead = "remove one of the two; nothing was moved"
        else:
            continue
        errors.append(UserError(folder / name, what, instead))
    if errors:
        raise UserErrors(errors)
    for name in loose:
        new = folder / labels[name] / name
        new.parent.mkdir(exist_ok=True)
        (folder / name).rename(new)
    return len(loose)


def real_answers(file: Path, images: Dataset, complete: bool) -> list[list[int]]:
    """Read ReaL's answers for each validation image, in the images' order; an image may have none.

    The file (real.json of google-research/reassessed-imagenet) is a list in the order of
    ILSVRC2012_val_00000001 to _00050000, which is not that of images sorted by class. Raises
    UserError if the file or the images are others; `complete` insists on 50,000 entries.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"cannot be read as JSON ({error})"
        raise UserError(file, what, "give ReaL's real.json") from None
    if not isinstance(entries, list) or not all(map(_is_answer, entries)):
        what = "is not a list of lists of classes 0 to 999"
        raise UserError(file, what, "give ReaL's real.json")
    expected = DATASETS["imagenet"].val
    if complete and len(entries) != expected:
        what = f"{len(entries):,} entries, ReaL has {expected:,}"
        raise UserError(file, what, "complete it, or give --no-verify for a part")
    if not isinstance(images, Images) or synsets(images) != ImageNetInfo().label_names():
        what = "its labels are for ImageNet's validation images and their 1,000 classes"
        raise UserError("--real", what, "give --data imagenet")
    numbers = [_number(images, index) for index in range(len(images))]
    if max(numbers) > len(entries):
        raise UserError(file, f"{len(entries):,} entries, but the data has image {max(numbers)}")
    return [entries[number - 1] for number in numbers]


def _is_answer(entry: object) -> bool:
    if not isinstance(entry, list):
        return False
    return all(type(label) is int and 0 <= label < 1000 for label in entry)


def _number(images: Images, index: int) -> int:
    """Return which of ILSVRC2012's validation images it is, from 1."""
    found = NUMBERED.search(images.name(index))
    if found is None or int(found[1]) == 0:
        what = "its name does not tell which validation image it is"
        instead = "ReaL needs ILSVRC2012_val_00000001.JPEG and so on"
        raise UserError(images.where(index), what, instead)
    return int(found[1])
