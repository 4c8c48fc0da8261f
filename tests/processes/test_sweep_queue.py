"""The queue of a set: real processes that play a training, killed and stopped."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from deit_tract.results.sweep import queue
from deit_tract.results.sweep.queue import Queue, Slot
from deit_tract.results.sweep.state import read_state
from tests.helpers.sweep import make, starts, training


@pytest.fixture(autouse=True)
def played(monkeypatch):
    monkeypatch.setattr(queue, "command", lambda member: training(member.folder))


def run(sweep, slots=2, **how) -> bool:
    return Queue(sweep.members, [Slot(None)] * slots, {}, **how).run()


def kinds(sweep) -> list[str]:
    return [read_state(member).kind for member in sweep.members]


def test_a_killed_run_resumes_and_a_failed_one_waits_for_retry(tmp_path):
    sweep = make(tmp_path)
    failing, killed, _ = sweep.members
    for member, name in ((failing, "FAIL"), (killed, "KILL")):
        member.folder.mkdir(parents=True)
        (member.folder / name).touch()
    assert not run(sweep)
    assert kinds(sweep) == ["failed", "finished", "finished"]
    assert starts(sweep) == [1, 2, 1]
    assert not run(sweep)
    assert starts(sweep) == [1, 2, 1]  # nothing is started again
    (failing.folder / "FAIL").unlink()
    assert not run(sweep, retry=True)
    assert kinds(sweep) == ["finished"] * 3
    assert starts(sweep) == [2, 2, 1]


def test_a_signal_saves_all_and_the_same_queue_resumes(tmp_path):
    sweep = make(tmp_path, seeds="0-3")

    def when_started():
        deadline = time.monotonic() + 60
        while sum(starts(sweep)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=when_started)
    thread.start()
    assert run(sweep)  # it says that it was stopped
    thread.join()
    assert "finished" not in kinds(sweep)[2:]
    assert not run(sweep)
    assert kinds(sweep) == ["finished"] * 4


def test_two_queues_on_one_folder_start_each_run_once(tmp_path):
    sweep = make(tmp_path, seeds="0-5")
    other = multiprocessing.get_context("fork").Process(target=run, args=(sweep,))
    other.start()
    run(sweep)
    other.join()
    assert kinds(sweep) == ["finished"] * 6
    assert starts(sweep) == [1] * 6


def test_a_run_starts_after_the_one_that_it_needs(tmp_path):
    recipes = ["quickstart_baseline", "quickstart"]
    sweep = make(
        tmp_path, recipes=recipes, seeds=0, checkpoint={"quickstart": "quickstart_baseline"}
    )
    sweep.members.reverse()
    assert not run(sweep)
    assert kinds(sweep) == ["finished"] * 2
