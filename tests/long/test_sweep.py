"""A set of two arms: one run killed, then the queue; the same weights at the end."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import loop
from tests.helpers import ROOT
from tests.helpers.loop import same, weights
from tests.helpers.processes import environment

RECIPE = """
base: quickstart
about: thirty steps
schedule: {epochs: null, steps: 30, warmup_epochs: null, warmup_steps: 5}
save: {every_epochs: null, every_steps: 5}
evaluate: {every_epochs: null, every_steps: 15}
"""


@pytest.fixture
def sweep(tmp_path):
    """Start tools/sweep.py on a set in a folder of this name."""
    (tmp_path / "thirty.yaml").write_text(RECIPE)
    values = {
        "recipes": [str(tmp_path / "thirty.yaml")],
        "vary": {"model.tract": [None, 0.1]},
        "seeds": 0,
        "rows": "",
        "columns": "model.tract",
        "against": "null",
    }
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"two_arms": values}))

    def start(folder: str, *options: str) -> subprocess.Popen:
        words = ["two_arms", "--file", str(tmp_path / "sets.yaml"), "--hours", "none"]
        command = [sys.executable, str(ROOT / "tools" / "sweep.py"), *words]
        command += ["--output", str(tmp_path / folder), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment(), stdout=pipe, stderr=pipe, text=True)

    return start


def ends(process: subprocess.Popen) -> tuple[int, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


def wait_for(condition, timeout: float = 300):
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_killed_run_and_a_killed_queue_change_nothing(sweep, tmp_path):
    queue = sweep("cut", "--run", "--per-gpu", "2")
    folder = tmp_path / "cut"
    saved = wait_for(lambda: sorted(folder.glob("*/*/checkpoints/step_*")))[0]
    for run in writers(saved.parent.parent):
        run.kill()
    wait_for(lambda: list(folder.glob("*/*/summary.json")))
    queue.kill()
    queue.communicate()
    wait_for(lambda: not writers(folder))  # what the killed queue left running ends by itself
    code, text = ends(sweep("cut", "--run", "--per-gpu", "2"))
    assert code == 0, text

    summaries = [json.loads(one.read_text()) for one in folder.glob("*/*/summary.json")]
    assert [one["exit"] for one in summaries] == ["finished"] * 2
    for run in [path.parent for path in folder.glob("*/*/summary.json")]:
        loop.train(load_recipe(str(run / "recipe.yaml")), tmp_path / "whole" / run.parent.name)
        assert same(weights(run, 30), weights(tmp_path / "whole" / run.parent.name, 30)), run
    code, text = ends(sweep("cut", "--report", "--csv", str(tmp_path / "cut.csv")))
    assert code == 0 and (tmp_path / "cut.csv").exists(), text


def writers(folder: Path) -> list[psutil.Process]:
    """The processes that train below a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "train.py" in line and f"--output {folder}" in line:
                found.append(process)
    return found
