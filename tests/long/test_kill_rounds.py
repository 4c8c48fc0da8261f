"""Six random kills of one of two processes, two per moment: each run ends with the same bits."""

import subprocess
import sys

from tests.helpers import ROOT
from tests.helpers.processes import environment


def test_six_runs_end_as_the_undisturbed_one():
    words = [sys.executable, str(ROOT / "tests" / "long" / "kill_rounds.py"), "--rounds", "6"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.stdout.splitlines()[-1:] == ["6 of 6 equal"], done.stdout + done.stderr
    assert done.returncode == 0
