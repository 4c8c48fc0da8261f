"""tools/compare.py as a command: its mistakes."""

import subprocess
import sys

from tests.helpers import ROOT
from tests.helpers.compare import compare, write


def test_mistakes_are_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "compare.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path}: holds no run; give a folder that train.py wrote\n",
    )
    run = write(tmp_path / "run", {1: 50.0})
    done = compare(run, run)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {run}: is given twice; name each run once\n",
    )
    done = compare(run, "--published", "vit_s_80ep")
    what = (
        "error: --published: nothing is published under 'vit_s_80ep'; did you mean 'vit_s_800ep'?\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", what)
    done = compare(run, "--plot", tmp_path / "nowhere" / "x.png")
    assert (
        done.returncode == 2
        and "its folder does not exist" in done.stderr
        and "Traceback" not in done.stderr
    )
