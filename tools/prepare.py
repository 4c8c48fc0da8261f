"""Check a data set before it is trained on: layout, classes, counts, and that every image can be decoded.

python tools/prepare.py imagenet DIR                      everything
python tools/prepare.py imagenet DIR --quick              classes and counts alone
python tools/prepare.py imagenet DIR --fix-val LABELS     sort a flat validation folder by class, then check
python tools/prepare.py voc2007 DIR                       tars by MD5 where they lie there, counts, every annotation
python tools/prepare.py folder DIR                        any set as DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE
python tools/prepare.py cifar10|cifar100|flowers102|cars DIR
python tools/prepare.py cifar10|cifar100|flowers102 DIR --download     fetch it from its authors first

Every problem is a line on stderr; the exit code is 0 without any, else 2.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets import imagenet, official, voc
from deit_tract.data.sets.fetch import changed_files, download
from deit_tract.data.sets.fine_grained import load_transfer
from deit_tract.data.sets.load import check_classes
from deit_tract.data.sets.on_disk import VAL, on_disk, place_of
from deit_tract.data.sets.readers import Splits
from deit_tract.recipe.resolve import load_recipe


class Decoding(Dataset):
    """Decodes an image of a set: None, or its UserError."""

    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> UserError | None:
        try:
            self.images[index]
        except UserError as error:
            return error
        return None


def broken(images: Dataset, workers: int, title: str) -> list[UserError]:
    """Every image that cannot be decoded, in the set's order, found by `workers` processes with a progress bar."""
    batches = DataLoader(
        Decoding(images), 64, num_workers=workers, collate_fn=list, worker_init_fn=_quiet
    )
    errors = []
    with tqdm(total=len(images), desc=title, unit=" images", unit_scale=True, disable=None) as bar:
        for results in batches:
            errors += [error for error in results if error is not None]
            bar.set_postfix(broken=len(errors), refresh=False)
            bar.update(len(results))
    return errors


def _quiet(worker: int) -> None:
    warnings.simplefilter(
        "ignore"
    )  # Pillow's about odd EXIF, which some of ImageNet's images have, break the bar


def describe(images: Dataset) -> str:
    """How many images of how many classes, and where."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    span = (
        f"{counts.min():,}"
        if counts.min() == counts.max()
        else f"{counts.min():,} to {counts.max():,}"
    )
    return f"{images.root}: {len(images):,} images of {len(counts):,} classes, {span} each"


def report(splits: Splits, errors: list[UserError], arguments: argparse.Namespace) -> None:
    """Print what is there, decode it unless --quick, print the summary. Raises UserErrors with all problems."""
    try:
        check_classes(*splits)
    except UserError as error:
        errors.append(error)
    for images in splits:
        print(describe(images), flush=True)
    if not arguments.quick:
        for images, title in zip(splits, splits._fields, strict=True):
            errors += broken(images, arguments.workers, title)
    _conclude(sum(map(len, splits)), errors, arguments)


def _conclude(count: int, errors: list[UserError], arguments: argparse.Namespace) -> None:
    """Print how much was looked at and how many problems there are. Raises UserErrors with all of them."""
    looked = "counted, not decoded" if arguments.quick else "decoded"
    found = "1 problem" if len(errors) == 1 else f"{len(errors) or 'no'} problems"
    print(f"{arguments.set} {arguments.dir}: {count:,} images {looked}; {found}", flush=True)
    if errors:
        raise UserErrors(errors)


def check_imagenet(arguments: argparse.Namespace) -> None:
    """ImageNet-1k, with a validation folder sorted first if so asked."""
    if arguments.fix_val:
        fix_val(Path(arguments.dir), arguments.fix_val)
    train, val = splits = on_disk(arguments.dir)
    errors = [*imagenet.problems(train, imagenet.TRAIN), *imagenet.problems(val, imagenet.VAL)]
    report(splits, errors, arguments)


def fix_val(root: Path, labels: Path) -> None:
    """Move the loose validation images into folders of their synsets."""
    folder = place_of(root, VAL)
    if folder.is_file():
        raise UserError(folder, "is a tar", f"unpack it to {root / 'val'} first")
    moved = imagenet.sort_by_class(folder, imagenet.read_labels(labels))
    print(f"{folder}: {moved:,} images moved into class folders", flush=True)


def check_folder(arguments: argparse.Namespace) -> None:
    report(on_disk(arguments.dir), [], arguments)


def check_official(arguments: argparse.Namespace) -> None:
    """One of the transfer sets: its files' MD5 where they are published, counts, classes."""
    if arguments.download:
        download(arguments.set, arguments.dir)
    splits = Splits(*load_transfer(arguments.set, arguments.dir, verify=False))
    errors = [
        *changed_files(arguments.set, arguments.dir),
        *official.problems(arguments.set, *splits),
    ]
    report(splits, errors, arguments)


def check_voc2007(arguments: argparse.Namespace) -> None:
    """VOC2007: the official tars where they lie beside the tree, counts, every annotation and every image."""
    directory, splits = Path(arguments.dir), []
    errors = voc.changed_tars(directory)
    print(
        f"{directory}: {sum((directory / tar).is_file() for tar in voc.TARS)} of 2 official tars there",
        flush=True,
    )
    names = load_recipe("voc2007_frcnn_vgg16").detect.class_names
    try:
        root = voc.find_root(directory, official=True)
    except UserError as error:
        raise UserErrors([*errors, error]) from None
    for name in voc.COUNTS:
        try:
            splits.append(voc.Voc(root, name, names))
        except UserError as error:
            errors += error.args[0] if isinstance(error, UserErrors) else [error]
    for split in splits:
        errors += voc.wrong_count(split)
        objects = sum(len(one.labels) for one in split.objects)
        difficult = sum(int(one.difficult.sum()) for one in split.objects)
        print(
            f"{root} {split.name}: {len(split):,} images, {objects:,} objects, {difficult:,} difficult",
            flush=True,
        )
        if not arguments.quick:
            errors += broken(split, arguments.workers, split.name)
    _conclude(sum(map(len, splits)), errors, arguments)


def _workers(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of processes")
    return int(text)


def main() -> None:
    parser = Parser(description=__doc__)
    sets = parser.add_subparsers(dest="set", metavar="SET", required=True)
    for name, function, about in (
        ("imagenet", check_imagenet, "ImageNet-1k (ILSVRC2012): the official classes and counts"),
        ("folder", check_folder, "any set of class folders"),
        *(
            (name, check_official, f"{facts.title}: official files and counts")
            for name, facts in official.FACTS.items()
        ),
        ("voc2007", check_voc2007, "PASCAL VOC2007: the official tars, counts and annotations"),
    ):
        one = sets.add_parser(name, help=about, description=about)
        one.set_defaults(run=function)
        forms = (
            f"{official.FACTS[name].folder}/"
            if name in official.FACTS
            else "class folders, tars, Hugging Face"
        )
        forms = "VOCdevkit/VOC2007/, beside it the tars" if name == "voc2007" else forms
        one.add_argument("dir", metavar="DIR", help=f"where the set lies: {forms}")
        one.add_argument(
            "--workers",
            metavar="N",
            type=_workers,
            default=os.cpu_count(),
            help="processes that decode",
        )
        one.add_argument(
            "--quick", action="store_true", help="classes and counts alone, no image is opened"
        )
        if name == "imagenet":
            about = "file of `filename synset` lines, or the devkit's folder: sorts DIR/val by class first"
            one.add_argument("--fix-val", metavar="LABELS", type=Path, help=about)
        if name in official.FACTS:
            one.add_argument(
                "--download",
                action="store_true",
                help="first fetch what is not there from its authors",
            )
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    script(main)
