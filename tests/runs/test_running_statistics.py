"""Batch normalisation's running statistics after resuming."""

import shutil

import pytest
import torch

from tests.helpers.running_statistics import LANES, cnn


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_resumed_run_has_them_to_the_bit(tmp_path, lanes):
    settings = (*LANES, f"batch.lanes={lanes}", "save.every_epochs=null", "save.every_steps=2")
    whole = cnn(tmp_path, 4, *settings)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    again = cnn(tmp_path, 4, *settings)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
