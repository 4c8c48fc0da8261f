"""Hostile input for the tools: broken run folders, weights and arguments, from a seed.

Each case is a tool's arguments and whether the input is broken for certain. In this process the
tool must end in time, with exit code 0 or with one line for each mistake; with code 0 only if the
input may pass, or if what was left out is reported.
"""

import contextlib
import importlib.util
import io
import random
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from accelerate.state import AcceleratorState, GradientState

from deit_tract import cli
from tests.helpers import ROOT
from tests.helpers.fuzz import at_most

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


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())
