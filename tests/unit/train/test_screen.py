"""What a person sees of a run: the bar of a terminal, lines of a file, the first numbers."""

import io
import re
import sys

import pytest

from deit_tract.train import screen
from deit_tract.train.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    return now


def test_on_a_terminal_the_bar_moves_at_every_step(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    shown = Screen(True, 3, 10, 64)
    shown.begin(["the first line"])
    read = []
    for step in (4, 5):
        shown.step(step, lambda: read.append(1) or 0.5)
        assert shown._bar.n == step
    assert not read, "between log lines nothing is read from the device"
    shown.progress(6, ["loss 0.2500"], 10.0)
    with shown.evaluating(8) as progress:
        progress(8)
    shown.close()
    text = terminal.getvalue()
    assert "\nthe first line\n" in f"\n{text}", "without a time"
    assert "6/10" in text and "loss 0.2500" in text and "evaluating   0%|" in text


def test_a_file_gets_lines_with_times_and_the_first_numbers_within_seconds(capsys, clock):
    shown = Screen(True, 0, 1000, 64)
    shown.begin(["the first line"])
    read = []
    for step, now in ((1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)):
        clock[0] = now
        shown.step(step, lambda: read.append(1) or 0.5)
    lines = capsys.readouterr().out.splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert re.fullmatch(f"{stamp}the first line", lines[0])
    numbers = r"step 3/1000, loss 0\.5000, 32 img/s so far, 0:33:14 left"
    assert len(lines) == 2 and re.fullmatch(stamp + numbers, lines[1])
    assert read == [1]
    assert screen.FIRST_LINE < 10


def test_only_process_0_prints(capsys, clock):
    shown = Screen(False, 0, 10, 64)
    shown.begin(["the first line"])
    clock[0] = 60.0
    shown.step(1, lambda: 1 / 0)
    shown.say("a line")
    assert capsys.readouterr() == ("", "")
