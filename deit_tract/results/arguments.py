"""Options that several tools share, and types that refuse at once what no tool can work with.

A type is called by argparse with the option's text. It raises UserError, so that a mistake ends
the tool before it reads or computes anything.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deit_tract.common.errors import UserError
from deit_tract.common.files import check_new_file, check_new_folder
from deit_tract.common.text import listed, short

MOST_WORKERS = 1024  # as the recipes' data.workers
PICTURES = (".png", ".pdf", ".svg")


# ---- types ---------------------------------------------------------------------------------------


def whole(option: str, low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        what = f"'{short(text, 40)}' is not a whole number from {low:,} to {high:,}"
        raise UserError(option, what)

    return read


def fraction(option: str, low: float) -> Callable[[str], float]:
    """A number from `low` to 1."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if low <= value <= 1:
            return value
        raise UserError(option, f"'{short(text, 40)}' is not a number from {low:g} to 1")

    return read


def path(option: str) -> Callable[[str], Path]:
    """A path to read from; whether something is there is for the reader to say."""

    def read(text: str) -> Path:
        return Path(given(option)(text))

    return read


def given(option: str) -> Callable[[str], str]:
    """A path, or the name of a model or recipe: any text that a file could be called."""

    def read(text: str) -> str:
        if not text:
            raise UserError(option, "is empty", "give a name")
        if "\0" in text or len(max(text.split("/"), key=len)) > 255 or len(text) > 4000:
            what = f"'{short(text, 40)}' is not a name that a file can have"
            raise UserError(option, what)
        return text

    return read


def repository(option: str) -> Callable[[str], str]:
    """USER/NAME on the Hugging Face hub."""

    def read(text: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9._-]{1,96}/[A-Za-z0-9._-]{1,96}", text):
            return text
        raise UserError(option, f"'{short(text, 40)}' is not USER/NAME of the hub")

    return read


def new_file(option: str, *suffixes: str, hint: str = "") -> Callable[[str], Path]:
    """A file to write, with one of the suffixes if any are given. Its folder must exist."""

    def read(text: str) -> Path:
        path = Path(text)
        if suffixes and path.suffix not in suffixes:
            ending = listed(suffixes)
            instead = hint or f"name a file that ends with {ending}"
            raise UserError(option, f"'{short(text)}' does not end with {ending}", instead)
        check_new_file(path, option)
        return path

    return read


def new_folder(option: str) -> Callable[[str], Path]:
    """A folder to make or to fill."""

    def read(text: str) -> Path:
        check_new_folder(Path(given(option)(text)), option)
        return Path(text)

    return read


# ---- words of hints ------------------------------------------------------------------------------

OUTPUT = {"choose another --output": "name another place"}
VERIFY = {"set data.verify=false": "give --no-verify", "with data.verify=false": "with --no-verify"}
IN_PLACE = {"--data-dir DIR": "DIR", "as --data-dir": "as DIR", "--data-dir ": ""}  # of --data-dir


# ---- options -------------------------------------------------------------------------------------

SHARED: dict[str, dict[str, Any]] = {
    "--data-dir": {"metavar": "DIR", "type": given("--data-dir"), "help": "the data set's folder"},
    "--no-verify": {"action": "store_true", "help": "accept a part of a data set"},
    "--workers": {
        "metavar": "N",
        "type": whole("--workers", 0, MOST_WORKERS),
        "help": "processes that load images",
    },
    "--batch-size": {
        "metavar": "N",
        "type": whole("--batch-size", 1, 2**16),
        "help": "images per process and forward pass",
    },
    "--model": {
        "metavar": "NAME",
        "type": given("--model"),
        "help": "timm's name of what FILE holds, or",
    },
    "--recipe": {
        "metavar": "NAME|FILE",
        "type": given("--recipe"),
        "help": "the recipe that FILE was trained by",
    },
    "--step": {
        "metavar": "N",
        "type": whole("--step", 0, 2**31),
        "help": "the run's checkpoint of this step (default: the newest)",
    },
    "--best": {
        "action": "store_true",
        "help": "the run's best weights on its validation images (save.best), not the newest",
    },
    "--ema": {"action": "store_true", "help": "the run's averaged weights"},
    "--image-size": {
        "metavar": "PX",
        "type": whole("--image-size", 1, 4096),
        "help": "instead of the model's own",
    },
    "--crop": {
        "metavar": "FRACTION",
        "type": fraction("--crop", 0.1),
        "help": "centre crop as a fraction of the resized side",
    },
    "--precision": {
        "choices": ("float32", "bf16", "fp16"),
        "help": "default: the run's own, else float32",
    },
    "--json": {"metavar": "FILE", "type": new_file("--json"), "help": "everything as JSON"},
}

# What a model given on a command line is, and how it sees images
OF_MODEL = (
    *("--model", "--recipe", "--step", "--best", "--ema"),
    *("--image-size", "--crop", "--precision", "--batch-size", "--workers"),
)


def add_shared(parser: Any, *options: str, **changes: Any) -> None:
    """Add options of SHARED to an argparse parser; `changes` apply to each of them."""
    for option in options:
        parser.add_argument(option, **(SHARED[option] | changes))


def add_model_and_images(parser: Any, images: str) -> None:
    """Add MODEL, IMAGES (`images`: how many, as argparse's nargs) and the options of both."""
    kinds = "a run, a checkpoint or exported folder, a file of weights, timm's"
    parser.add_argument("source", metavar="MODEL", type=given("MODEL"), help=kinds)
    what = "images, folders of them, or patterns"
    parser.add_argument("images", metavar="IMAGES", nargs=images, type=given("IMAGES"), help=what)
    add_shared(parser, *OF_MODEL)
