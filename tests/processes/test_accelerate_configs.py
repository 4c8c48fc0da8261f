"""The shipped configurations of accelerate launch train, on two processes and on two nodes."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from deit_tract.train import log
from tests.helpers import ROOT
from tests.helpers.accelerate_configs import FOLDER
from tests.helpers.processes import finish, free_port, sets
from tests.helpers.runs import losses, short, train

ACCELERATE = ("-m", "accelerate.commands.launch")
OURS = (str(ROOT / "tools" / "launch.py"),)


def launcher(name: str, *words: str, start: Sequence[str] = ACCELERATE) -> subprocess.Popen:
    """accelerate launch, or another start, with a shipped file on the CPU."""
    return subprocess.Popen(
        [sys.executable, *start, "--config_file", str(FOLDER / f"{name}.yaml"), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return losses(train(tmp_path_factory.mktemp("alone"), *short(20)))


def test_two_processes_on_the_cpu(tmp_path, alone):
    script = ["train.py", "--recipe", "quickstart", "--output", str(tmp_path), *sets(short(20))]
    code, out, err = finish(launcher("cpu", f"--main_process_port={free_port()}", *script))
    assert code == 0 and "machine: 2 processes on cpu, " in out, err
    assert len(alone) == 20 and losses(log.read_metrics(tmp_path)) == pytest.approx(
        alone, rel=0, abs=5e-6
    )

    other = [f"--main_process_port={free_port()}", *script, "--set", "seed=1"]
    code, _, err = finish(launcher("cpu", *other, start=OURS))
    assert code == 2 and len(err.splitlines()) == 1, "no traceback of the launcher"
    assert "holds a run of another recipe (seed: 0 -> 1)" in err


def test_two_nodes_on_one_machine(tmp_path, alone):
    script = ["train.py", "--recipe", "quickstart", "--output", str(tmp_path), *sets(short(20))]
    both = [
        "--num_machines=2",
        "--num_processes=2",
        "--main_process_ip=127.0.0.1",
        f"--main_process_port={free_port()}",
    ]
    nodes = [launcher("nodes", *both, f"--machine_rank={rank}", *script) for rank in (1, 0)]
    (code, silent, err), (code0, out, err0) = (finish(node) for node in nodes)
    assert (code, code0) == (0, 0), err + err0
    assert "machine: 2 processes on cpu, " in out and silent == "", "only process 0 speaks"
    assert losses(log.read_metrics(tmp_path)) == pytest.approx(alone, rel=0, abs=5e-6)
