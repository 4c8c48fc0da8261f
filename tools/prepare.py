"""Check a data set before training: layout, classes, counts, and that every image can be decoded.

python tools/prepare.py imagenet DIR                      everything
python tools/prepare.py imagenet DIR --quick              only classes and counts
python tools/prepare.py imagenet DIR --fix-val LABELS     sort a flat validation folder, then check
python tools/prepare.py voc2007 DIR                       MD5 of its tars, counts, annotations
python tools/prepare.py folder DIR                        your own: classes, sizes, copies
python tools/prepare.py cifar10|cifar100|flowers102|cars DIR
python tools/prepare.py cifar10|cifar100|flowers102 DIR --download     fetch it from its authors

Every problem is a line on stderr; the exit code is 0 without any, else 2.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import plural
from deit_tract.data.sets.folder import find_layout, place_of
from deit_tract.data.sets.imagenet_labels import read_labels, sort_by_class
from deit_tract.data.sets.images import PARTS, Splits
from deit_tract.data.sets.inspection import class_counts, look_at, remarks
from deit_tract.data.sets.load import READERS, check_same_classes
from deit_tract.data.sets.official import changed_files, download, folder_of
from deit_tract.data.sets.split import Subset
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Data
from deit_tract.results.arguments import IN_PLACE, MOST_WORKERS, add_shared, given, path

# voc is any set in VOC's layout, whose classes only a recipe tells
SETS = {name: facts for name, facts in DATASETS.items() if facts.on_disk and name != "voc"}
SPLIT = 0.1  # held out of a folder without a validation part, as recipe folder_finetune does
NEXT = "next: python finetune.py --recipe folder_finetune --checkpoint timm:NAME --data-dir {}"


class Decoding(Dataset):
    """Looks at an image of a set by its index."""

    def __init__(self, images: Dataset, look: Callable):
        self.images, self.look = images, look

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> object:
        return self.look(self.images, index)


def decodes(images: Dataset, index: int) -> UserError | None:
    """Decode an image: None, or its UserError."""
    try:
        images[index]
    except UserError as error:
        return error
    return None


def decode_all(images: Dataset, look: Callable, workers: int, title: str) -> list:
    """Look at all images in `workers` processes; what was found, in the set's order."""
    dataset = Decoding(images, look)
    batches = DataLoader(dataset, 64, num_workers=workers, collate_fn=list, worker_init_fn=_quiet)
    found = []
    broken = 0
    with tqdm(total=len(images), desc=title, unit=" images", unit_scale=True, disable=None) as bar:
        for results in batches:
            found += results
            broken += sum(isinstance(one, UserError) for one in results)
            bar.set_postfix(broken=broken, refresh=False)
            bar.update(len(results))
    return found


def _quiet(worker: int) -> None:
    """Drop Pillow's warnings about odd EXIF, which some of ImageNet's images have."""
    warnings.simplefilter("ignore")


def describe(images: Dataset) -> str:
    """Return where the images lie, how many they are, and of how many classes."""
    if hasattr(images, "objects"):
        objects = sum(len(one.labels) for one in images.objects)
        difficult = sum(int(one.difficult.sum()) for one in images.objects)
        count = f"{len(images):,} images, {objects:,} objects, {difficult:,} difficult"
        return f"{images.root} {images.name}: {count}"
    counts = np.bincount(images.labels, minlength=len(images.classes))
    low, high = counts.min(), counts.max()
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{images.root}: {len(images):,} images of {len(counts):,} classes, {span} each"


def check(arguments: argparse.Namespace) -> None:
    """Check a set as the options ask and print what is there. Raises UserErrors."""
    name, directory = arguments.set, arguments.dir
    if arguments.download:
        download(name, READERS[name].fetch, directory)
    if arguments.fix_val:
        fix_val(Path(directory), arguments.fix_val)
    errors = changed(name, directory)
    parts = [part for part in PARTS if getattr(DATASETS[name], part) != 0]
    try:
        splits = read(name, directory, parts)
    except UserError as error:
        raise UserErrors([*errors, error]) from None
    for part, images in zip(parts, splits, strict=True):
        errors += READERS[name].problems(name, part, images)
    try:
        check_same_classes(splits[0], splits[-1])
    except UserError as error:
        errors.append(error)
    for images in splits:
        print(describe(images), flush=True)
    own = name == "folder" and not errors
    look = look_at if own else decodes
    found = {}
    if not arguments.quick:
        for part, images in zip(parts, splits, strict=True):
            found[part] = decode_all(images, look, arguments.workers, part)
            errors += [one for one in found[part] if isinstance(one, UserError)]
    if own:
        report(directory, Splits(*splits), found)
    conclude(sum(map(len, splits)), errors, arguments)
    if own:
        print(NEXT.format(directory))


def report(directory: str, splits: Splits, found: dict[str, list]) -> None:
    """Print the layout, the classes and what may surprise in a set of one's own."""
    if not directory.startswith("hfds/"):
        print(f"layout: {find_layout(Path(directory)).words}")
    if isinstance(splits.val, Subset):
        print(
            f"no validation part: data.split={SPLIT} holds out {plural(len(splits.val), 'image')}"
        )
    print("\n".join(class_counts(splits)))
    for line in remarks(splits, found):
        print(f"remark: {line}")


def changed(name: str, directory: str) -> list[UserError]:
    """Compare the MD5 of those published files that are there."""
    md5 = READERS[name].md5
    if not md5:
        return []
    folder = folder_of(name, directory)
    there = sum((folder / file).is_file() for file in md5)
    print(f"{folder}: {there} of {len(md5)} official files there", flush=True)
    return list(changed_files(folder, md5))


def read(name: str, directory: str, parts: list[str]) -> list[Dataset]:
    """Read parts of a set, complete or not."""
    facts = DATASETS[name]
    data = Data(name="folder", dir=directory, image_size=1, classes=1, verify=False, split=SPLIT)
    data = data.model_copy(update={"name": name})  # no recipe may name imagenet_v2
    if "detect" not in facts.tasks:
        return READERS[name].read(data, parts)
    return READERS[name].read(data, parts, load_recipe("voc2007_frcnn_vgg16").detect)


def conclude(count: int, errors: list[UserError], arguments: argparse.Namespace) -> None:
    """Print how many images were checked and how many problems there are. Raises UserErrors."""
    looked = "counted, not decoded" if arguments.quick else "decoded"
    found = plural(len(errors), "problem") if errors else "no problems"
    print(f"{arguments.set} {arguments.dir}: {count:,} images {looked}; {found}", flush=True)
    if errors:
        raise UserErrors(errors)


def fix_val(root: Path, labels: Path) -> None:
    """Move the loose validation images into folders of their synsets."""
    folder = place_of(root, "val")
    if folder.is_file():
        raise UserError(folder, "is a tar", f"unpack it to {root / 'val'} first")
    moved = sort_by_class(folder, read_labels(labels))
    print(f"{folder}: {moved:,} images moved into class folders", flush=True)


def parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.set_defaults(download=False, fix_val=None)
    sets = parser.add_subparsers(dest="set", metavar="SET", required=True)
    for name, facts in SETS.items():
        one = sets.add_parser(name, help=facts.title, description=f"Check {facts.title}.")
        where = f"where {facts.folder}/ lies" if facts.folder else "where the set lies"
        one.add_argument("dir", metavar="DIR", type=given("DIR"), help=where)
        add_shared(one, "--workers", default=min(os.cpu_count() or 1, MOST_WORKERS))
        help = "only classes and counts, no image is opened"
        one.add_argument("--quick", action="store_true", help=help)
        if name == "imagenet":
            help = "`filename synset` lines or the devkit's folder: first sort DIR/val by class"
            one.add_argument("--fix-val", metavar="LABELS", type=path("--fix-val"), help=help)
        if facts.folder:
            help = "first fetch what is not there from its authors"
            one.add_argument("--download", action="store_true", help=help)
    return parser


def main() -> None:
    try:
        check(parser().parse_args())
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    script(main, IN_PLACE)
