"""Two steps of the smaller networks of TrAct's Table 1; tests/long has those of the others."""

import pytest

from tests.helpers.cifar_nets import SMALL, check_two_steps


@pytest.mark.parametrize("name", SMALL)
def test_two_steps_differ_in_the_first_layers_weight_alone(name):
    check_two_steps(name)
