"""A sample of the schema's keys at their limits; tests/long/test_hostile_settings.py has all."""

from tests.helpers.hostile_settings import FAULTS, TINY, limits, outcome


def test_some_keys_at_their_limits():
    settings = limits()[::24]
    kinds = [outcome("quickstart", [*TINY["quickstart"], *one]) for one in settings]
    faults = [pair for pair in zip(settings, kinds, strict=True) if pair[1][0] in FAULTS]
    assert not faults, faults
    assert sum(kind == "step" for kind, _ in kinds) >= 4, kinds
