"""Broken files of run folders, for `tests.helpers.hostile`."""

import json
import math
import random
import shutil
from pathlib import Path

from PIL import Image

from tests.helpers.hostile import Count, harm_bytes, judge, newest, run_tool

ODD = [
    None,
    True,
    -1,
    0.5,
    10**30,
    10**400,
    math.nan,
    math.inf,
    "",
    "x",
    "\n|",
    [],
    [1],
    {},
    {"a": 1},
]
LINES = "metrics.jsonl"
JSON = {"summary.json", "environment.json", "progress.json", "fingerprint.json", LINES}
READERS = {
    "summary.json": ("compare", "export"),
    "metrics.jsonl": ("compare", "export", "train"),
    "environment.json": ("export",),
    "fingerprint.json": ("train", "export"),
    "recipe.yaml": ("compare", "evaluate", "export"),
    "model.safetensors": ("evaluate", "train"),
    "ema.safetensors": ("export",),
    "optimizer.pt": ("train", "evaluate"),
    "progress.json": ("train", "evaluate"),
}


def commands(run: Path, out: Path, overrides: list[str]) -> dict[str, list[str]]:
    """Each tool's arguments for a run."""
    sets = [word for one in overrides for word in ("--set", one)]
    return {
        "compare": [str(run), "--plot", str(out / "curves.png")],
        "export": [str(run), str(out / "export")],
        "evaluate": [str(run), "--workers", "0", "--json", str(out / "found.json")],
        "train": ["--recipe", "quickstart", "--output", str(run), *sets],
    }


def harm_json(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a JSON file's structure. Returns how, and whether any reader must notice."""
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    if path.name != LINES:
        values = json.loads("\n".join(lines))
        how, sure = _harm_values(values, rng, path.name)
        path.write_text(json.dumps(values, indent=1) + "\n")
        return how, sure
    if rng.random() < 0.3:
        first = (
            number == 0 or json.loads(lines[number - 1])["step"] < json.loads(lines[number])["step"]
        )
        lines[number:number] = [rng.choice(["", "[]", "null", "1", '"x"', "{}", "{{", "\0"])]
        path.write_text("\n".join(lines) + "\n")
        return f"a line before {number}, {first}", True
    values = json.loads(lines[number])
    how, sure = _harm_values(values, rng, path.name)
    lines[number] = json.dumps(values)
    path.write_text("\n".join(lines) + "\n")
    return f"line {number}: {how}", sure


SURE = {  # values that a key may not have
    "exit": lambda value: not isinstance(value, str),
    "seconds": lambda value: not _number(value, 0) and value is not None,
    "steps": lambda value: not _whole(value) and value is not None,
    "step": lambda value: not _whole(value),
    "epoch": lambda value: not _number(value, 0),
    "top1": lambda value: not _number(value, 0, 100),
    "ema_top1": lambda value: not _number(value, 0, 100),
    "loss": lambda value: not _number(value, -1e300),
    "commit": lambda value: not isinstance(value, str) and value is not None,
    "classes": lambda value: not isinstance(value, list) or value == [1],
    "train": lambda value: True,
    "val": lambda value: True,
    "packages": lambda value: not isinstance(value, dict) or value == {"a": 1},
}


def _number(value: object, low: float, high: float = 1e308) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and low <= value <= high


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _harm_values(values: dict, rng: random.Random, file: str) -> tuple[str, bool]:
    key = rng.choice(list(values))
    needed = key in ("exit", "step", "epoch", "classes", "train", "val") and file != "progress.json"
    if rng.random() < 0.15:
        del values[key]
        return f"no {key}", needed or file == "progress.json"
    values[key] = value = rng.choice(ODD)
    sure = file == "progress.json" or (key in SURE and SURE[key](value))
    return f"{key} = {str(value)[:20]}", sure


def run_folders(made: Path, overrides: list[str], place: Path, cases: range, count: Count) -> None:
    """Break a file of a copy of the run `made` in each case, and call the tools that read it."""
    for i in cases:
        rng = random.Random(f"run {i}")
        name = rng.choice(list(READERS))
        run, out = place / "run", place / "out"
        for folder in (run, out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, run)
        out.mkdir()
        path = run / name if (run / name).exists() else newest(run) / name
        harm = harm_json if name in JSON and rng.random() < 0.5 else harm_bytes
        how, sure = harm(path, rng)
        tool = rng.choice(READERS[name])
        arguments = commands(run, out, overrides)[tool]
        if name == "recipe.yaml" and (harm is harm_bytes and how.startswith("cut")):
            sure = not path.read_bytes().endswith(b"\n")
        if name == "ema.safetensors":
            arguments.append("--ema")
        judge(count, f"run {i}, {name}, {how}", tool, arguments, sure)


def exports(made: Path, overrides: list[str], place: Path, cases: range, count: Count) -> None:
    """Break a file of an exported folder in each case, and evaluate it or predict by it."""
    source = place / "source"
    code, _, err = run_tool("export", [str(made), str(source)])
    assert code == 0, err
    Image.new("L", (8, 8)).save(place / "image.png")
    for i in cases:
        rng = random.Random(f"export {i}")
        export = place / "exported"
        shutil.rmtree(export, ignore_errors=True)
        shutil.copytree(source, export)
        name = rng.choice(["config.json", "config.json", "model.safetensors"])
        harm = harm_json if name == "config.json" and rng.random() < 0.6 else harm_bytes
        how, sure = harm(export / name, rng)
        sure = sure and not (name == "model.safetensors" and "zeros" in how)  # no checksum there
        tool = rng.choice(["evaluate", "predict"])
        words = ["--workers", "0"]
        words += ["--data", "digits"] if tool == "evaluate" else [str(place / "image.png")]
        judge(count, f"export {i}, {name}, {how}", tool, [str(export), *words], sure)
