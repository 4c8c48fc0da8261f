"""TrAct under real processes: the update of the whole batch however it is cut, DDP, FSDP2,
DeepSpeed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


def results(script: str, folder: Path, timeout: float) -> dict:
    """Runs a script of programs/, which starts its own processes, and reads the JSON it writes."""
    out = folder / "results.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "processes" / "programs" / script), str(out)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{script} took more than {timeout} s\n{output[-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return json.loads(out.read_text())


def test_update_does_not_depend_on_processes(tmp_path):
    got = results("tract_lanes.py", tmp_path, 120)
    assert got.pop("one Gram matrix a lane differs") > 1e-2  # so that the others can fail
    assert len(got) == 7 and all(value <= 1e-6 for value in got.values()), got


def test_engines(tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    got = results("tract_engines.py", tmp_path, 300)
    refused = [got.pop(f"stage {stage}, batch") for stage in (1, 2, 3)]
    assert all(
        "has no gradient: the engine keeps it elsewhere" in message for message in refused
    ), refused
    halves = [got.pop("stage 2, lane, bf16"), got.pop("stage 0, batch, bf16")]
    assert all(value < 3e-2 for value in halves), halves
    assert len(got) == 7 and all(value < 1e-6 for value in got.values()), got
