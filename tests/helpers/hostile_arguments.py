"""Values that the tools' options must refuse, for `tests.helpers.hostile`."""

import random
import shutil
from pathlib import Path

from PIL import Image

from tests.helpers.hostile import Count, judge

NUMBERS = ["", "x", "-1", "1e3", "1.5", "nan", "\u0663", "99999999999", "9" * 5000, "0x10", "1_0"]
NAMES = ["", "a\0b", "\udcff", "x" * 300, "a/" * 3000]
PLACES = [
    *NAMES,
    "FOLDER",
    "none/a",
    "/dev/null",
    "/proc/none",
    "RUN/recipe.yaml/x",
    "a\nb",
    "/",
    ".",
]
SOURCES = [*NAMES, "none", "timm:", "timm:none", "timm:a\0b", "torchvision:none", "/", "/dev/null"]
SOURCES += ["RUN/checkpoints", "RUN/recipe.yaml", "RUN/summary.json", "RUN/none", "local-dir:RUN"]
TIMES = ["x", "4", "-1", "9" * 40, "1:2:3:4:5"]
SEEDS = [
    "",
    "x",
    "0-9999999999",
    "5-2",
    "0,0",
    "0-8:0",
    "9" * 5000,
    "0-",
    "0%0",
    "\u0663",
    "0-5000000",
]

# by tool: what is right, and values of options that must be refused; a name stands for each value
GOOD = {
    "evaluate": ["RUN", "--workers", "0"],
    "export": ["RUN", "OUT/export"],
    "compare": ["RUN"],
    "predict": ["RUN", "OUT/image.png", "--workers", "0"],
    "features": ["RUN", "OUT/image.png", "--workers", "0", "--out", "OUT/out.npz"],
    "submit": ["--recipe", "vit_s_800ep", "--nodes", "1", "--print"],
    "prepare": ["folder", "FOLDER", "--workers", "0"],
    "bench": ["resident", "--data-dir", "none"],
    "train": ["--recipe", "quickstart", "--output", "RUN", "SETS"],
}
SEEN = {
    "--image-size": ["0", "1", "99999", *NUMBERS],
    "--crop": ["1e-9", "0", "2", "inf", "x", "", "nan", "-1", "9" * 5000],
    "--workers": ["99999", *NUMBERS],
    "--batch-size": ["0", *NUMBERS],
    "--step": ["3", *NUMBERS],
    "--model": [*NAMES, "none", "test_vit2"],
    "--recipe": [*NAMES, "none", "quickstart"],
    "--precision": ["int8", ""],
}
BAD: dict[str, dict[str, list[str]]] = {
    "evaluate": {
        **SEEN,
        "--json": PLACES,
        "--per-class": [*PLACES, "OUT/a.txt", "FOLDER/none/a.csv"],
        "--confusion": [*PLACES, "OUT/a", "OUT/a.txt"],
        "--data": ["", "digitz", "folder", "imagenet", "cifar10", "voc2007"],
        "--real": [*NAMES, "none", "RUN/recipe.yaml"],
        "": SOURCES,
    },
    "export": {
        "--step": ["3", *NUMBERS],
        "--push": ["x", ""],
        "OUT/export": [*NAMES, "RUN", "RUN/recipe.yaml", "/dev/null", "/proc/none/a", "/", "a\nb"],
        "RUN": SOURCES,
    },
    "compare": {
        "--plot": [*PLACES, "OUT/a", "OUT/a.txt"],
        "--published": [*NAMES, "none"],
        "": [*SOURCES, "RUN"],
    },
    "predict": {
        **SEEN,
        "--top": ["0", *NUMBERS],
        "--csv": [*PLACES, "OUT/a.txt"],
        "--pictures": ["", "a\0b", "\udcff", "x" * 300, "/dev/null", "RUN/recipe.yaml/x", "a\nb"],
        "OUT/image.png": [*NAMES, "none", "OUT/none/*.png", "/dev/null", "FOLDER"],
        "RUN": SOURCES,
    },
    "features": {
        **SEEN,
        "--out": PLACES,
        "--part": ["", "test"],
        "--data": ["", "none", "voc2007"],
        "OUT/image.png": [*NAMES, "none", "OUT/none/*.png", "/dev/null", "FOLDER"],
        "RUN": SOURCES,
    },
    "submit": {
        "--nodes": ["0", "9999", *NUMBERS],
        "--gpus-per-node": ["0", "999", *NUMBERS],
        "--cpus-per-task": ["0", *NUMBERS],
        "--grace": ["0", *NUMBERS],
        "--array": SEEDS,
        "--time": ["4"],
        "--recipe": [*NAMES, "none", "quickstart:none"],
        "--checkpoint": [*NAMES, "none"],
        "--config-file": [*NAMES, "none", "FOLDER", "RUN/recipe.yaml", "RUN/summary.json"],
        "--set": ["", "x", "none=1", "seed=x", "batch.lanes=0", "\udcff"],
        "--output": [*NAMES, "a\nb"],
        "--account": ["a\nb", "\0", "\udcff"],
        "--data-dir": NAMES,
    },
    "prepare": {
        "--workers": ["99999", *NUMBERS],
        "FOLDER": [*NAMES, "none", "/dev/null", "RUN/recipe.yaml"],
        "folder": ["", "none", "a\0b", "imagenet", "voc2007", "cifar10", "flowers102", "cars"],
    },
    "bench": {
        "--rounds": ["0", "1", *NUMBERS],
        "--json": PLACES,
        "--data": ["x"],
        "--data-dir": [*NAMES, "none", "/dev/null"],
    },
    "train": {
        "--output": [*NAMES, "/dev/null", "RUN/recipe.yaml", "/proc/none/a", "RUN/summary.json/a"],
        "--recipe": [*NAMES, "none", "FOLDER", "RUN/summary.json"],
        "--set": ["", "x", "none=1", "seed=x"],
        "--none": ["1"],
    },
}


def arguments(made: Path, overrides: list[str], place: Path, cases: range, count: Count) -> None:
    """Call a tool with one or two values that must be refused."""
    for i in cases:
        rng = random.Random(f"arguments {i}")
        run, out = place / "run", place / "out"
        for folder in (run, out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, run)
        (out / "folder").mkdir(parents=True)
        Image.new("L", (8, 8)).save(out / "image.png")
        tool = rng.choice(list(GOOD))
        words = list(GOOD[tool])
        for _ in range(rng.choice([1, 1, 2])):
            option = rng.choice(list(BAD[tool]))
            value = rng.choice(BAD[tool][option])
            if option.startswith("-"):
                words += [f"{option}={value}"]
            elif option in words:
                words[words.index(option)] = value
            else:
                words = [value, *[word for word in words if word != "RUN" or tool == "compare"]]
        words = [_placed(word, run, out) for word in words]
        sets = [word for one in overrides for word in ("--set", one)]
        words = [word for one in words for word in (sets if one == "SETS" else [one])]
        judge(count, f"arguments {i}", tool, words, True)


def _placed(word: str, run: Path, out: Path) -> str:
    places = {"RUN": run, "OUT": out, "FOLDER": out / "folder"}
    for name, path in places.items():
        word = word.replace(name, str(path))
    return word
