"""The larger networks of TrAct's Table 1: two steps of each, and the reference's logits."""

import pytest

from tests.helpers.cifar_nets import FIGURES, LARGE, check_two_steps, logits


@pytest.mark.parametrize("name", LARGE)
def test_two_steps_differ_in_the_first_layers_weight_alone(name):
    check_two_steps(name)


@pytest.mark.parametrize("name", LARGE)
def test_logits_are_the_references(name):
    assert logits(name) == pytest.approx(FIGURES[name][1:], rel=2e-6)
