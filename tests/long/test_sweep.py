"""A set of two arms: one run killed, then the queue; the same weights at the end."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from tests.helpers import ROOT
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
    code, text = ends(sweep("whole", "--run", "--per-gpu", "2"))
    assert code == 0, text

    queue = sweep("cut", "--run", "--per-gpu", "2")
    folder = tmp_path / "cut"
    saved = wait_for(lambda: sorted(folder.glob("*/*/checkpoints/step_*")))[0]
    own = f"--output {saved.parent.parent} "
    runs = [one for one in psutil.Process(queue.pid).children() if own in line_of(one)]
    for run in runs:
        run.kill()
    wait_for(lambda: list(folder.glob("*/*/summary.json")))
    queue.send_signal(signal.SIGKILL)
    queue.communicate()
    for _ in range(3):  # what the killed queue left running ends by itself
        code, text = ends(sweep("cut", "--run", "--per-gpu", "2"))
        if code == 0:
            break
        wait_for(lambda: "running" not in ends(sweep("cut"))[1])
    assert code == 0, text

    for path in sorted((tmp_path / "whole").glob("*/*/checkpoints/step_00000030/*.safetensors")):
        other = folder / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes(), path
    tables = [ends(sweep(name, "--report", "--csv", str(tmp_path / f"{name}.csv"))) for name in
              ("whole", "cut")]  # fmt: skip
    assert [code for code, _ in tables] == [0, 0], tables
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "cut.csv").read_text()
    summaries = [json.loads(one.read_text()) for one in folder.glob("*/*/summary.json")]
    assert [one["exit"] for one in summaries] == ["finished"] * 2


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) + " "
    except psutil.Error:
        return ""
