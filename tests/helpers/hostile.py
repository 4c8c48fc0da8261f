"""Hostile input for the tools: broken run folders, weights and arguments, from a seed.

Each case is a tool's arguments and whether the input is broken for certain. In this process the
tool must end in time, with exit code 0 or with one line for each mistake; with code 0 only if the
input may pass, or if what was left out is reported.
"""

import contextlib
import importlib.util
import io
import json
import math
import random
import shutil
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from deit_tract import cli
from tests.helpers import ROOT
from tests.helpers.fuzz import at_most
from tests.helpers.safety import FORMS, malicious

SECONDS = 60
SAYS_SO = ("left out", "falling back to the one before")  # what makes a broken input acceptable
TOOLS: dict[str, ModuleType] = {}


@dataclass
class Count:
    """What became of the cases of one kind."""

    tried: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)  # silently, though broken
    reasons: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        numbers = [len(self.tracebacks), len(self.hangs), len(self.accepted)]
        row = [f"{self.tried:,}", *map(str, numbers), str(len(self.reasons))]
        return " | ".join(row)


def run_tool(name: str, arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a tool, train or finetune in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if name in ("train", "finetune"):
                    cli.main("Train.", name == "finetune")
                else:
                    cli.script(_tool(name).main)
                code = 0
            except SystemExit as end:
                code = end.code
            finally:
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
    return code, out.getvalue(), err.getvalue()


def _tool(name: str) -> ModuleType:
    if name not in TOOLS:
        spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / f"tools/{name}.py")
        TOOLS[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(TOOLS[name])
    return TOOLS[name]


def judge(count: Count, what: str, tool: str, arguments: list[str], broken: bool) -> None:
    """Run a tool and count what happened."""
    count.tried += 1
    what = f"{what}: {tool} {' '.join(arguments)[-300:]!a}"
    try:
        with at_most(SECONDS):
            code, out, err = run_tool(tool, arguments)
    except AssertionError as error:
        count.hangs.append(f"{what}: {error}")
        return
    except BaseException:
        last = traceback.format_exc().splitlines()
        count.tracebacks.append("\n".join([what, *last[-7:]]))
        return
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    if code == 1 and tool in ("predict", "features") and err.startswith("warning: "):
        return  # what it could not read it has named
    if code == 0:
        if broken and not any(words in out + err for words in SAYS_SO):
            count.accepted.append(what)
        return
    if code != 2 or not lines or not all(line.isprintable() for line in lines):
        count.tracebacks.append(f"{what}: exit code {code}, {err[-500:]!r}")
    elif "Traceback" in err or max(map(len, lines)) > 3000:
        count.tracebacks.append(f"{what}: {err[-500:]!r}")
    count.reasons[lines[0].split(": ", 2)[-1][:40] if lines else ""] += 1


# ---- run folders ---------------------------------------------------------------------------------

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
LINES = {"summary.json", "metrics.jsonl", "environment.json", "progress.json"}
READERS = {
    "summary.json": ("compare", "export"),
    "metrics.jsonl": ("compare", "export", "train"),
    "environment.json": ("export",),
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


def harm_bytes(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a file's bytes. Returns how, and whether any reader must notice."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(max(len(data) - 1, 1))
    kind = rng.choice(
        ["empty", "cut", "zeros", "garbage", "invalid", "flip", "folder", "gone", "end"]
    )
    if kind in ("folder", "gone"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        return kind, False
    changed = {
        "empty": b"",
        "cut": data[:at],
        "zeros": data[:at] + bytes(len(data) - at),
        "garbage": rng.randbytes(rng.choice([1, 100, 5000])),
        "invalid": data[:at] + b"\xff\xfe" + data[at:],
        "flip": data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        "end": data + rng.choice([b"}", b"\0\0\0", b"{", b"\xff", b"\n[]\n"]),
    }
    path.write_bytes(changed[kind])
    sure = kind in ("empty", "garbage", "invalid") or (
        kind in ("cut", "zeros") and at < len(data) - 2
    )
    if path.name == "metrics.jsonl":  # cut at its end it is that of a run in progress
        sure = kind in ("garbage", "invalid")
    return f"{kind} at {at}", sure


def harm_json(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Change a JSON file's structure. Returns how, and whether any reader must notice."""
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    if path.name != "metrics.jsonl":
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
    "packages": lambda value: not isinstance(value, dict) or value == {"a": 1},
}


def _number(value: object, low: float, high: float = 1e308) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and low <= value <= high


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _harm_values(values: dict, rng: random.Random, file: str) -> tuple[str, bool]:
    key = rng.choice(list(values))
    needed = key in ("exit", "step", "epoch") and file != "progress.json"
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
        path = run / name if (run / name).exists() else _newest(run) / name
        harm = harm_json if name in LINES and rng.random() < 0.5 else harm_bytes
        how, sure = harm(path, rng)
        tool = rng.choice(READERS[name])
        arguments = commands(run, out, overrides)[tool]
        if name == "recipe.yaml" and (harm is harm_bytes and how.startswith("cut")):
            sure = not path.read_bytes().endswith(b"\n")
        if name == "ema.safetensors":
            arguments.append("--ema")
        judge(count, f"run {i}, {name}, {how}", tool, arguments, sure)


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


# ---- weights -------------------------------------------------------------------------------------


def odd_tensors(good: torch.Tensor) -> dict[str, object]:
    """What may be in the place of a tensor of floats, by a name; none of it is right."""
    last = good.flatten()[-1:].clone()
    return {
        "list": good.tolist(),
        "none": None,
        "text": "x",
        "nested": {"weight": good},
        "0-D": torch.tensor(1.0),
        "1-D": torch.ones(7),
        "empty": torch.empty(0),
        "more dimensions": good[None, None],
        "sparse": good.to_sparse(),
        "quantised": torch.quantize_per_tensor(good.float(), 0.1, 0, torch.qint8),
        "meta": good.to("meta"),
        "complex": good.to(torch.complex64),
        "integer": good.to(torch.int32),
        "bool": good > 0,
        "float8": good.to(torch.float8_e4m3fn),
        "NaN": torch.where(torch.arange(good.numel()).view(good.shape) == 0, math.nan, good),
        "infinity": torch.full_like(good, math.inf),
        "expanded": last.expand(good.numel(), 10**9),
        "huge": last.expand(10**6, 10**6),
        "same shape of one number": last.view([1] * good.ndim).expand(good.shape),
    }


def harm_weights(good: dict, path: Path, executed: Path, rng: random.Random) -> tuple[str, bool]:
    """Write a file of broken weights. Returns how they are broken, and whether for certain."""
    state = dict(good)
    key = rng.choice(list(state))
    kind = rng.choice(
        ["tensor"] * 5 + ["name", "wrap", "bytes", "bytes", "keys", "payload", "plain"]
    )
    if kind == "tensor":
        if "pos_embed" in state and rng.random() < 0.3:
            key = "pos_embed"
        odd = odd_tensors(state[key])
        how = rng.choice(list(odd))
        sure = how != "same shape of one number" or state[key].numel() > 1
        state[key] = odd[how]
        torch.save(rng.choice([state, {"model": state}, {"state_dict": state}]), path)
        return f"{key} {how}", sure
    if kind == "name":
        name = rng.choice([1, None, 1.5, ("a", "b"), b"x", True])
        state[name] = state.pop(key)
        torch.save(rng.choice([state, {"model": state}]), path)
        return f"name {name!r}", True
    if kind == "wrap":
        inner = rng.choice([[], [1], list(state.values()), None, "x", {}, 5, state[key], ()])
        torch.save(rng.choice([{"model": inner}, {"state_dict": inner}, inner]), path)
        return f"of type {type(inner).__name__}", True
    if kind == "keys":
        how = rng.choice(["gone", "more", "renamed", "twice"])
        if how in ("gone", "renamed"):
            taken = state.pop(key)
        if how == "renamed":
            state[f"module.{key}"] = taken
        if how == "more":
            state["more"] = torch.ones(2)
        if how == "twice":
            state |= {"blocks.0.gamma_1": torch.ones(2), "blocks.0.ls1.gamma": torch.ones(2)}
        torch.save(state, path)
        return f"{key} {how}", True
    if kind == "payload":
        form = rng.choice(FORMS)
        malicious(path, executed, form)
        return f"payload, {form}", True
    if kind == "plain":
        state[key] = state[key].to(rng.choice([torch.float64, torch.float32]))
        torch.save(rng.choice([state, {"model": state, "epoch": 3}]), path)
        return "nothing", False
    if path.suffix == ".safetensors":
        path.write_bytes(serialize(state))
    else:
        torch.save(state, path)
    how, sure = harm_bytes(path, rng)
    return how, sure and "zeros" not in how


def weights(made: Path, overrides: list[str], place: Path, cases: range, count: Count) -> None:
    """Give broken files of weights to evaluate and finetune."""
    good = load_file(_newest(made) / "model.safetensors")
    executed = place / "executed"
    for i in cases:
        rng = random.Random(f"weights {i}")
        shutil.rmtree(place / "w", ignore_errors=True)
        (place / "w").mkdir()
        path = place / "w" / f"w{rng.choice(['.pth', '.safetensors', '.bin'])}"
        how, sure = harm_weights(good, path, executed, rng)
        recipe = str(made / "recipe.yaml")
        tool = rng.choice(["evaluate", "evaluate", "finetune"])
        arguments = [str(path), "--recipe", recipe, "--workers", "0"]
        if tool == "evaluate" and rng.random() < 0.2:
            arguments[1:3] = ["--model", "test_vit2"]
        if tool == "finetune":
            sets = [word for one in overrides for word in ("--set", one)]
            output = str(place / "w" / "run")
            arguments = [
                "--recipe",
                "quickstart",
                "--checkpoint",
                str(path),
                "--output",
                output,
                *sets,
            ]
        sure = sure and (path.suffix != ".safetensors" or path.exists())
        judge(count, f"weights {i}, {path.suffix}, {how}", tool, arguments, sure)
        if executed.exists():
            count.accepted.append(f"weights {i}: a payload was executed")
            shutil.rmtree(executed)


# ---- arguments -----------------------------------------------------------------------------------

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
        "FOLDER": [*NAMES, "none", "/dev/null", "RUN/recipe.yaml", "/"],
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


KINDS: dict[str, Callable] = {
    "run folders": run_folders,
    "weights": weights,
    "arguments": arguments,
}
