"""batch.exact: gradients summed lane by lane, the same bits on any number of processes."""

import shutil

import pytest

from deit_tract.train import log
from tests.helpers.faults import state
from tests.helpers.processes import worlds
from tests.helpers.runs import losses, short


def test_the_exact_switch_gives_the_same_bits_on_any_number_of_processes(tmp_path):
    """1, 2, 3, 4 and 8 processes for 8 lanes, and a run that changes from 3 to 2."""
    overrides = short(6, "batch.exact=true", "batch.lanes=8", "save.every_steps=3", "save.keep=3")
    inexact = [value for value in overrides if "exact" not in value]
    jobs = [(str(processes), processes, overrides) for processes in (1, 2, 3, 4, 8)]
    worlds(tmp_path, [*jobs, ("summed by the network", 8, inexact)])
    shutil.copytree(tmp_path / "3", tmp_path / "3 to 2")
    shutil.rmtree(tmp_path / "3 to 2" / "checkpoints" / "step_00000006")
    worlds(tmp_path, [("3 to 2", 2, overrides)])
    expected = losses(log.read_metrics(tmp_path / "1"))
    assert len(expected) == 6
    for name in ("2", "3", "4", "8", "3 to 2"):
        assert state(tmp_path / name, 6) == state(tmp_path / "1", 6), name
        assert losses(log.read_metrics(tmp_path / name)) == expected
    assert losses(log.read_metrics(tmp_path / "summed by the network")) == pytest.approx(
        expected, rel=0, abs=5e-6
    )
