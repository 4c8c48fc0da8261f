"""Training in one process: log, evaluation, EMA, resume to the bit, and a stop when the loss is no number."""

import json

import pytest

from tests.helpers.loss_trace import STORED, trace


def test_the_stored_trace_of_20_steps():
    """A change of the arithmetic shows here; `python tests/helpers/loss_trace.py` compares to the last bit on one machine."""
    values, _ = trace()
    assert values == pytest.approx(json.loads(STORED.read_text()), rel=0, abs=1e-6)
