"""Broken run folders, weights and arguments at the tools: one line each, in time, none accepted.

    python -m tests.long.test_hostile [FIRST LAST]

counts other cases than those of the test.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.evaluate_tool import LEARN
from tests.helpers.hostile import Count
from tests.helpers.hostile_arguments import arguments
from tests.helpers.hostile_runs import exports, run_folders
from tests.helpers.hostile_weights import weights
from tests.helpers.runs import short, train

MODEL = [one for one in LEARN if "warmup" not in one]
OVERRIDES = short(4, *MODEL, "ema.decay=0.9", "evaluate.every_steps=2", "save.every_steps=2")
KINDS = {"run folders": run_folders, "exports": exports, "weights": weights, "arguments": arguments}
CASES = {"run folders": 30, "exports": 25, "weights": 50, "arguments": 150}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of four steps on the digits, with checkpoints and evaluations at 2 and 4."""
    folder = tmp_path_factory.mktemp("made")
    train(folder, *OVERRIDES)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_one_line(made, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    count = Count()
    KINDS[kind](made, OVERRIDES, tmp_path, range(CASES[kind]), count)
    assert count.tried == CASES[kind]
    assert count.tracebacks == count.hangs == count.accepted == []
    assert len(count.reasons) > 5, "the cases differ"


def test_a_line_is_all_that_a_person_sees(made):
    """The same through Python's own start and end, which must print what is no text."""
    command = [sys.executable, ROOT / "tools" / "compare.py", made, "--plot", b"/tmp/\xff.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    line = "error: command line: '/tmp/\\udcff.png' is not UTF-8 text; rename what it names\n"
    assert done.stderr == line


def main(first: int, last: int) -> None:
    """Print a row of each kind, and what is wrong."""
    print("kind | tried | tracebacks | hangs | silently accepted | different messages")
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "made"
        train(run, *OVERRIDES)
        for kind, cases in KINDS.items():
            count = Count()
            cases(run, OVERRIDES, Path(place), range(first, last), count)
            print(f"{kind} | {count}", flush=True)
            print(*count.tracebacks, *count.hangs, *count.accepted, sep="\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or (0, 400)))
