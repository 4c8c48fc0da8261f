"""Signals that reach every process of a job at once, loader processes too."""

import json
import os
import signal
import subprocess
import sys
import time

from deit_tract.train import log
from tests.helpers import ROOT
from tests.helpers.processes import environment, finish, free_port, sets
from tests.helpers.runs import short


def job(folder, overrides) -> list[subprocess.Popen]:
    """Two processes of a run, with all below them in one process group, as a cluster has them."""
    port = str(free_port())
    words = ["--recipe", "quickstart", "--output", str(folder), *sets(overrides)]
    processes: list[subprocess.Popen] = []
    for rank in ("0", "1"):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *words],
            cwd=ROOT,
            env=environment(**launch, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=processes[0].pid if processes else 0,
        )
        processes.append(process)
    return processes


def signalled(folder, overrides, step: int, number: signal.Signals) -> list[dict]:
    """Send all processes a signal once `step` is logged; the metrics that were there by then."""
    processes = job(folder, overrides)
    deadline = time.time() + 240
    while not any(record["step"] >= step for record in log.read_metrics(folder)):
        assert time.time() < deadline and processes[0].poll() is None, finish(processes[0], 1)
        time.sleep(0.005)
    before = log.read_metrics(folder)
    os.killpg(processes[0].pid, number)
    ends = [finish(process) for process in processes]
    assert [code for code, _, _ in ends] == [75, 75], ends
    assert not any("Traceback" in err or "error" in err for _, _, err in ends), ends
    return before


def test_a_signal_to_all_processes_saves_while_training_and_while_evaluating(tmp_path):
    often = ("evaluate.every_steps=20", "evaluate.batch_size=1", "ema.decay=0.9")
    overrides = short(60, *often, "data.workers=2")
    signalled(tmp_path, overrides, 3, signal.SIGTERM)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["exit"] == "preempted" and 3 <= summary["steps"] < 20
    assert (tmp_path / "checkpoints" / f"step_{summary['steps']:08d}").is_dir()
    before = signalled(tmp_path, overrides, 20, signal.SIGUSR1)
    assert not any("top1" in record for record in before), "it was evaluating"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["exit"] == "preempted" and 20 <= summary["steps"] < 25
    assert summary["final"]["step"] == 20
    assert (tmp_path / "checkpoints" / f"step_{summary['steps']:08d}").is_dir()
