"""Every key at its limits, and seeded mutations: what --plan accepts begins to train.

HOSTILE=2000 pytest tests/long/test_hostile_settings.py tries as many mutations.
"""

import os
from collections import Counter

import pytest

from tests.helpers.detect import RECIPE
from tests.helpers.hostile_settings import FAULTS, TINY, limits, mutation, outcome


@pytest.mark.parametrize("name", ["quickstart", RECIPE])
def test_every_key_at_its_limits_is_refused_or_trains_a_step(name):
    counts = Counter()
    faults = []
    for settings in limits():
        kind, said = outcome(name, [*TINY[name], *settings])
        counts[kind] += 1
        if kind in FAULTS:
            faults.append((kind, settings, said))
    assert not faults, faults
    assert counts["step"] > 80, counts


def test_mutations_are_refused_or_train_a_step(tmp_path):
    counts = Counter()
    faults = []
    for number in range(int(os.environ.get("HOSTILE", "60"))):
        name, settings = mutation(number, tmp_path)
        kind, said = outcome(name, settings)
        counts[kind] += 1
        if kind in FAULTS:
            faults.append((kind, number, name, settings, said))
    print(dict(counts))
    assert not faults, faults
    assert counts["step"] and counts["refused"], counts
