"""Five tests that fail first when a change was meant to compute the same and does not.

The others are test_architecture.py and recipe/test_recipes.py.
"""

import json

import pytest

from deit_tract.data.stream import Stream
from tests.helpers.loss_trace import STORED, trace
from tests.helpers.runs import losses, short, train, train_until


def test_the_stored_trace_of_20_steps():
    """`python tests/helpers/loss_trace.py` compares to the last bit on one machine."""
    values, _ = trace()
    assert values == pytest.approx(json.loads(STORED.read_text()), rel=0, abs=1e-6)


def test_three_steps_and_three_more_are_six(tmp_path, monkeypatch):
    """Interrupted after step 3 and started again: the same bits as without."""
    overrides = short(6, "save.every_steps=3", "save.keep=3", "ema.decay=0.9")
    whole = losses(train(tmp_path / "whole", *overrides))
    train_until(3, monkeypatch, tmp_path / "parts", *overrides)
    assert losses(train(tmp_path / "parts", *overrides)) == whole
    for name in ("model", "ema"):
        file = f"checkpoints/step_00000006/{name}.safetensors"
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_two_lanes_share_out_what_one_has():
    """Image by image in turn, as DeiT deals them to GPUs."""
    one, two = (Stream(1437, lanes, 64 // lanes, repeats=1) for lanes in (1, 2))
    for step in range(2 * one.steps_per_epoch):
        views = [view.index for view in one.views(step, 0)]
        assert views[::2] == [view.index for view in two.views(step, 0)]
        assert views[1::2] == [view.index for view in two.views(step, 1)]
