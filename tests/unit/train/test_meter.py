"""Losses between two log lines: all names, checkpoints of every age."""

import pytest
import torch
from accelerate import Accelerator

from deit_tract.common.errors import UserError
from deit_tract.train.meter import Meter


def losses(total: float, part: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(total), "part": torch.tensor(part)}


def test_every_named_loss_is_averaged_and_survives_a_checkpoint():
    accelerator = Accelerator(cpu=True)
    meter = Meter(accelerator, None)
    meter.add(1, losses(2.0, 0.5), torch.tensor(7.0))
    meter.read()
    later = Meter(accelerator, meter.state())
    for one in (meter, later):
        one.add(2, losses(4.0, 1.0), torch.tensor(8.0))
        assert one.read() == ({"loss": 3.0, "part": 0.75}, 8.0)
    meter.reset()
    meter.add(3, losses(1.0, 1.0), torch.tensor(9.0))
    assert meter.read() == ({"loss": 1.0, "part": 1.0}, 9.0)


def test_an_older_checkpoint_has_a_list_of_loss_and_steps():
    meter = Meter(Accelerator(cpu=True), [2.0, 1])
    meter.add(2, losses(4.0, 1.0), torch.tensor(8.0))
    assert meter.read()[0] == {"loss": 3.0}, "no mean of a part of the steps"
    meter.reset()
    meter.add(3, losses(1.0, 0.5), torch.tensor(8.0))
    assert meter.read()[0] == {"loss": 1.0, "part": 0.5}
    fresh = Meter(Accelerator(cpu=True), [0.0, 0])
    fresh.add(1, losses(1.0, 0.5), torch.tensor(8.0))
    assert fresh.read()[0] == {"loss": 1.0, "part": 0.5}


def test_the_first_step_that_is_not_finite_is_named():
    meter = Meter(Accelerator(cpu=True), None)
    for step, value in ((4, 1.0), (5, float("nan")), (6, float("inf"))):
        meter.add(step, losses(value, 0.0), torch.tensor(1.0))
    with pytest.raises(UserError, match=r"step 5: .*--set faults.skip_steps=\[5\]"):
        meter.read()
