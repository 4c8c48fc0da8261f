"""Shared by the tests of loop."""

import time

import torch
from safetensors.torch import load_file

from deit_tract.train import log
from tests.helpers.processes import finish


def weights(folder, step, name="model"):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def wait_for_step(folder, process, step: int, timeout: float = 300) -> None:
    deadline = time.time() + timeout
    while not any(record.get("step", 0) >= step for record in log.read_metrics(folder)):
        assert time.time() < deadline and process.poll() is None, finish(process, 1)
        time.sleep(0.02)
