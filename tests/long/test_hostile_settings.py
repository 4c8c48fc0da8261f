"""Keys at their limits, and seeded mutations: what --plan accepts begins to train.

HOSTILE=2000 pytest tests/long/test_hostile_settings.py tries as many mutations and every key.
"""

import os
from collections import Counter

import pytest

from tests.helpers.detect import RECIPE
from tests.helpers.hostile_settings import FAULTS, TINY, limits, mutation, outcome

BY_HAND = os.environ.get("HOSTILE")


@pytest.mark.parametrize("name, first", [("quickstart", 6), (RECIPE, 13)])
def test_keys_at_their_limits_are_refused_or_train_a_step(name, first, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # its login is the machine's
    cases = limits() if BY_HAND else limits()[first::20]
    counts = Counter()
    faults = []
    for settings in cases:
        kind, said = outcome(name, [*TINY[name], *settings])
        counts[kind] += 1
        if kind in FAULTS:
            faults.append((kind, settings, said))
    assert not faults, faults
    assert counts["step"] > len(cases) / 4, counts


def test_mutations_are_refused_or_train_a_step(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    counts = Counter()
    faults = []
    for number in range(int(BY_HAND or 30)):
        name, settings = mutation(number, tmp_path)
        kind, said = outcome(name, settings)
        counts[kind] += 1
        if kind in FAULTS:
            faults.append((kind, number, name, settings, said))
    print(dict(counts))
    assert not faults, faults
    assert counts["step"] and counts["refused"], counts
