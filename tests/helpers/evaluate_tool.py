"""Shared by the tests of evaluate tool."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import load_recipe
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
    """A function that runs the tool in this process: what it printed and the contents of its JSON
    file.
    """

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


# ---- timm's models -------------------------------------------------------------------------------


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


OFFICIAL = ImageNetInfo().label_names()


# ---- ImageNet's other sets -----------------------------------------------------------------------


def noise(count: int):
    return np.random.default_rng(0).integers(256, size=(count, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A small random model of 1,000 classes as recipe and weights; a function from pixels to its
    class.
    """
    folder = tmp_path_factory.mktemp("thousand")
    recipe = folder / "thousand.yaml"
    recipe.write_text("base: quickstart\ndata: {name: imagenet, classes: 1000, workers: 0}\n")
    net = build_model(load_recipe(str(recipe))).eval()
    with torch.no_grad():
        net.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        images = (torch.from_numpy(noise(60)) / 255 - 0.3)[:, None] / 0.38
        found, wanted = (
            net(images).argmax(1).unique().tolist(),
            [2, 10, 999, 1, 100, 20, 3, 11, 111, 5],
        )
        assert (
            len(found) >= 4
        )  # of the few classes that noise is taken for, some shall be of one digit, some of more
        rows = dict(zip(wanted, found, strict=False))
        others = iter(sorted(set(range(1000)) - set(rows.values())))
        net.head.weight.copy_(
            net.head.weight[
                [rows[label] if label in rows else next(others) for label in range(1000)]
            ].clone()
        )
    save_file(net.state_dict(), folder / "w.safetensors")

    def predict(pixels: np.ndarray) -> int:
        with torch.inference_mode():
            return int(net((torch.from_numpy(pixels) / 255 - 0.3)[None, None] / 0.38).argmax())

    return (folder / "w.safetensors", "--recipe", recipe), predict
