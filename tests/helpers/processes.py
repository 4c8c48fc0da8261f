"""Training runs in real processes, and their end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.helpers import ROOT


def sets(overrides) -> list[str]:
    """Overrides as command line arguments."""
    return [word for override in overrides for word in ("--set", override)]


def environment(**more: str) -> dict[str, str]:
    """For processes started by a test: one thread each, no GPU."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def command(
    *arguments: str, processes: int = 1, script: str = "train.py", launcher: Sequence[str] = ()
) -> subprocess.Popen:
    """Start a script of the project in `processes` real processes (gloo), or with another
    launcher's words.
    """
    if not launcher and processes > 1:
        launcher = (
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            f"--master_port={free_port()}",
        )
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / script), *arguments],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; all of it is killed when it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        pytest.fail(f"no end after {timeout} s\n{out}\n{err}")
    return process.returncode, out, err


def run(*arguments: str, timeout: float = 300, **how) -> tuple[int, str, str]:
    """`command`, to its end."""
    return finish(command(*arguments, **how), timeout)


def worlds(folder: Path, jobs: Sequence[tuple], timeout: float = 600) -> str:
    """Train in real processes: (name of a folder below `folder`, processes, overrides) each; what
    was said.

    Cheaper than a launcher for each: programs/worlds.py imports once and forks.
    """
    path = folder / "jobs.json"
    path.write_text(
        json.dumps(
            [[str(folder / name), n, "quickstart", [*overrides]] for name, n, overrides in jobs]
        )
    )
    code, out, err = run(str(path), script="tests/processes/programs/worlds.py", timeout=timeout)
    assert code == 0, err
    return out


def workers(process) -> list[psutil.Process]:
    """The training processes below a launcher, in the order of their ranks."""
    try:
        below = psutil.Process(process.pid).children()
        return sorted(below, key=lambda one: int(one.environ().get("RANK", 0)))
    except psutil.NoSuchProcess:
        return []


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it; a launcher's workers live in sessions of their own."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
