"""Shared by the tests: short training runs in this process or in real ones, and the real images beside the checkout."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from deit_tract.recipe.resolve import load_recipe

ROOT = Path(__file__).resolve().parent.parent
REAL_IMAGES = ROOT.parent / "shared" / "data"

LONGEST = ("test_quickstart.py", "test_zero.py", "test_faults.py")  # minutes each

# A quickstart cut down to `steps`, a log line each step
SHORT = ("log.every_steps=1", "evaluate.every_epochs=1000", "save.every_epochs=1000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two cores, which take file after file, end together."""
    place = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def _one_thread_and_fresh_accelerate():
    """The same arithmetic in every test, and no launcher state from the test before."""
    from accelerate.state import AcceleratorState, GradientState

    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def short(steps: int, *more: str) -> list[str]:
    """Overrides for a run of so many steps; the warm-up shrinks along."""
    return [*SHORT, f"schedule.steps={steps}", f"schedule.warmup_steps={min(steps, 100)}", *more]


def train(
    folder: Path, *overrides: str, recipe: str = "quickstart", data_dir: str | None = None
) -> list[dict]:
    """Train in this process; the records of metrics.jsonl."""
    from deit_tract.train import log, loop

    pass  # moved

    loop.train(load_recipe(recipe, overrides, data_dir), folder)
    return log.read_metrics(folder)


def train_until(step: int, monkeypatch, folder: Path, *overrides: str) -> None:
    """Train in this process and interrupt the run before its optimizer step `step`, counted from 0."""
    from deit_tract.train import loop

    whole = loop.Run.optimizer_step

    def stopping(self, now, batches):
        if now == step:
            raise KeyboardInterrupt
        return whole(self, now, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Run, "optimizer_step", stopping)
        train(folder, *overrides)


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]


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
    """Start a script of the project in `processes` real processes (gloo), or with another launcher's words."""
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
    """Train in real processes: (name of a folder below `folder`, processes, overrides) each; what was said.

    Cheaper than a launcher for each: dist/worlds.py imports once and forks.
    """
    path = folder / "jobs.json"
    path.write_text(
        json.dumps(
            [[str(folder / name), n, "quickstart", [*overrides]] for name, n, overrides in jobs]
        )
    )
    code, out, err = run(str(path), script="tests/dist/worlds.py", timeout=timeout)
    assert code == 0, err
    return out


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it; a launcher's workers live in sessions of their own."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def as_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (c, h, w)"""
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)


def sets(overrides) -> list[str]:
    """Overrides as command line arguments."""
    return [word for override in overrides for word in ("--set", override)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """A function that unpacks an archive of real images and returns its folder; skips where there are none."""

    def unpack(name: str) -> Path:
        archive = REAL_IMAGES / name
        if not archive.exists():
            pytest.skip(f"needs the real images {name} beside the checkout")
        folder = tmp_path_factory.mktemp(archive.name.split(".")[0])
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return folder

    return unpack
