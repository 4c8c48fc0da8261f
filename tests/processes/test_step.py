"""A step on two processes with different numbers of lanes."""

import pytest

from deit_tract.train import log
from tests.helpers.processes import run, sets
from tests.helpers.runs import losses, short, train
from tests.helpers.step import DRAWS, apart, weights


def test_two_processes_with_uneven_shares(tmp_path):
    """Three lanes, two in one forward here and one there, as one process with a lane at a time."""
    overrides = short(5, *DRAWS, "batch.size=48", "batch.lanes=3")
    expected = losses(train(tmp_path / "one", *overrides))
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path / "two"), *sets(overrides)]
    code, _, err = run(*arguments, "--set", "batch.lanes_per_forward=2", processes=2)
    assert code == 0, err
    assert losses(log.read_metrics(tmp_path / "two")) == pytest.approx(expected, abs=1e-6)
    assert apart(weights(tmp_path / "one", 5), weights(tmp_path / "two", 5)) < 1e-5
