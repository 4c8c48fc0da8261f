"""The larger networks of TrAct's Table 1: two steps of each kind, and the reference's logits.

NETWORKS=all pytest tests/long/test_cifar_nets.py takes the two steps of all that tests/runs leaves.
"""

import os

import pytest

from tests.helpers.cifar_nets import FIGURES, LARGE, check_two_steps, logits

# One of each kind that no smaller network has
KINDS = ["vgg11", "inceptionv3", "inceptionv4", "xception", "wideresnet"]


@pytest.mark.parametrize("name", LARGE if os.environ.get("NETWORKS") == "all" else KINDS)
def test_two_steps_differ_in_the_first_layers_weight_alone(name):
    check_two_steps(name)


@pytest.mark.parametrize("name", LARGE)
def test_logits_are_the_references(name):
    assert logits(name) == pytest.approx(FIGURES[name][1:], rel=2e-6)
