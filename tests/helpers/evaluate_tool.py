"""Shared by the tests of evaluate tool."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT
from tests.helpers.runs import short, train

TOOL = "tools/evaluate.py"
LEARN = (
    "loss.name=ce",
    "mix.prob=0.0",
    "optim.name=adamw",
    "optim.lr=5e-3",
    "augment.repeats=1",
    "batch.lanes=1",
)
LEARN += (
    "model.args.depth=1",
    "model.args.init_values=0.1",
    "schedule.warmup_steps=5",
    "log.every_steps=1000",
)
OVERRIDES = short(60, *LEARN, "ema.decay=0.9", "evaluate.every_steps=30", "save.every_steps=30")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the digits with checkpoints at steps 30 and 60, and its records by step."""
    folder = tmp_path_factory.mktemp("digits")
    records = train(folder, *OVERRIDES)
    return folder, {record["step"]: record for record in records if "top1" in record}


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path):
    """A function that runs the tool in this process: what it printed and the contents of its JSON file."""

    def call(*arguments: object) -> tuple[str, dict]:
        file = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments), "--json", str(file)])
        runpy.run_path(str(ROOT / TOOL), run_name="__main__")
        return capsys.readouterr().out, json.loads(file.read_text())

    return call


@pytest.fixture
def refused(evaluate, capsys):
    """A function that runs the tool and returns the one line that it ends with."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            evaluate(*arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


# ---- timm's models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of two pictures each, larger than what timm's smallest model sees."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(2)
    for number in range(6):
        pixels = random.integers(256, size=(9, 12, 3), dtype=np.uint8)
        path = folder / "val" / "abc"[number // 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((260, 190), Image.BICUBIC).save(path)
    return folder
