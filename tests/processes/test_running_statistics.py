"""Batch normalisation's running statistics on several processes are those of one."""

import torch

from tests.helpers.processes import command, finish, sets
from tests.helpers.running_statistics import LANES, cnn, weights
from tests.helpers.runs import short


def test_processes_have_the_statistics_of_one(tmp_path):
    """Four lanes on one process and, unevenly, on three, to the bit where gradients are; the EMA of
    them too.
    """
    steps, overrides = 3, ("schedule.steps=3", *LANES, "evaluate.batch_size=50")
    alone = cnn(tmp_path / "1", steps, *LANES)
    arguments = [
        "--recipe",
        "cifar10_cnn_8ep_sgd_tract",
        "--output",
        str(tmp_path / "n"),
        *sets(short(steps, *overrides)),
    ]
    arguments += sets(["schedule.warmup_steps=null"])
    code, _, err = finish(command(*arguments, processes=3), timeout=600)
    assert code == 0, err
    together = weights(tmp_path / "n", steps)
    assert list(alone) == list(together) and any(key.endswith("running_var") for key in alone)
    assert all(torch.equal(together[key], value) for key, value in alone.items())
    moved = alone["model.bn1.running_mean"]
    assert moved.abs().max() > 0.01 and not torch.equal(moved, alone["ema.bn1.running_mean"])
