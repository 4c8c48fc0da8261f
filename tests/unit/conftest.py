"""The default tests stay quick: one that takes more than two seconds of processor time fails."""

import os
import sys

import pytest

SECONDS = 2
SECONDS_OF_CANARIES = 5  # they train
SECONDS_PER_IMPORT = 0.02  # the first test to need a library may wait for it


def processor_seconds() -> float:
    """Of this process and of those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    modules, before = len(sys.modules), processor_seconds()
    result = yield
    used = processor_seconds() - before
    canary = item.path.name == "test_canaries.py"
    allowed = SECONDS_OF_CANARIES if canary else SECONDS
    allowed += SECONDS_PER_IMPORT * (len(sys.modules) - modules)
    allowed *= max(1.0, os.getloadavg()[0] / os.cpu_count())  # shared cores and caches are slower
    if used > allowed:
        what = f"{used:.1f} s of processor time, more than {allowed:.1f}"
        pytest.fail(f"{what}: move it to tests/runs, tests/processes or tests/long", pytrace=False)
    return result
