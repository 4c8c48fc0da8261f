"""The real command prints what the tests of tests/unit/cli see in this process."""

import re

from tests.helpers.processes import run, sets
from tests.helpers.runs import short


def test_the_real_command_prints_one_line_too(tmp_path):
    code, _, err = run("--recipe", "quickstart", "--set", "optim.lrr=1")
    assert (code, err) == (
        2,
        "error: --set optim.lrr=1: no such key 'optim.lrr'; did you mean 'lr'?\n",
    )
    code, out, err = run("--recipe", "quickstart", "--output", str(tmp_path), *sets(short(2)))
    assert code == 0 and "Traceback" not in err
    lines = out.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert re.fullmatch(f"{stamp}quickstart in {tmp_path}: a new run; 2 steps, .*", lines[0])
    assert re.match(f"{stamp}finished: top1 ", lines[-5])
    assert lines[-1] == f"  python tools/compare.py {tmp_path}"
    code, _, err = run(
        "--recipe", "quickstart", "--output", str(tmp_path), *sets(short(2, "seed=1"))
    )
    assert code == 2 and "holds a run of another recipe (seed: 0 -> 1)" in err.splitlines()[-1]
