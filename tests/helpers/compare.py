"""Shared by the tests of compare."""

import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from tests.helpers import ROOT


def compare(*arguments: object) -> subprocess.CompletedProcess:
    """The tool in this process: its exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    command = [str(ROOT / "tools" / "compare.py"), *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def write(
    folder: Path,
    top1: dict[float, float],
    *overrides: str,
    seed: int = 0,
    exit: str | None = "finished",
) -> Path:
    """A run's folder as training would leave it, with this top-1 by epoch; `exit` None is a run
    that goes on.
    """
    folder.mkdir(parents=True)
    recipe = load_recipe("quickstart", [f"seed={seed}", "expect.top1=null", *overrides])
    (folder / "recipe.yaml").write_text(explain(recipe))
    records = [
        {"step": int(epoch * 10), "epoch": float(epoch), "top1": value}
        for epoch, value in top1.items()
    ]
    records += [
        {"step": int(epoch * 10), "epoch": float(epoch), "loss": 1 / (1 + epoch)} for epoch in top1
    ]
    records.sort(key=lambda record: record["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if exit is not None:
        (folder / "summary.json").write_text(json.dumps({"exit": exit, "seconds": 60.0}))
    return folder


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every Markdown table of a text, as rows by column."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[dict(zip(rows[0], row, strict=True)) for row in rows[2:]] for rows in found if rows]
