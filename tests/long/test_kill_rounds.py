"""Twenty random kills of one of two processes: every run ends with the same bits."""

import subprocess
import sys

from tests.helpers import ROOT
from tests.helpers.processes import environment


def test_twenty_runs_end_as_the_undisturbed_one():
    words = [sys.executable, str(ROOT / "tests" / "long" / "kill_rounds.py")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.stdout.splitlines()[-1:] == ["20 of 20 equal"], done.stdout + done.stderr
    assert done.returncode == 0
