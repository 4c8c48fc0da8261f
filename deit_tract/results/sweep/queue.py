"""A queue of runs on this machine: so many per GPU, each in a process of its own.

What a run has reached is in its folder only, so that the same command resumes after any kill, and
several queues may share a folder: before a start, a queue takes the lock `.queue` of the run's
folder and looks at the run's state again.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.recipe.source import ROOT
from deit_tract.results.sweep.definition import Member
from deit_tract.results.sweep.state import ENDED, LOG, State, read_state
from deit_tract.train.folder import Lock

PREEMPTED = 75
PATIENCE = 0.2  # s between looks at the running processes


class Slot(NamedTuple):
    """A place for one run at a time; gpu None: on the CPU."""

    gpu: str | None


class Started(NamedTuple):
    member: Member
    slot: Slot
    process: subprocess.Popen
    claim: Lock
    step: int  # of the checkpoint that it resumes from


class Queue:
    """Runs what is unfinished, longest first, until nothing can start any more."""

    def __init__(
        self,
        members: list[Member],
        slots: list[Slot],
        hours: dict[Path, float],
        retry: bool = False,
    ):
        self._waiting = sorted(members, key=lambda member: -hours.get(member.folder, 0.0))
        self._free = list(slots)
        self._threads = max(1, (os.cpu_count() or 1) // len(slots))
        self._retry = retry
        self._running: list[Started] = []
        self._fruitless: Counter[Path] = Counter()  # starts that ended without a new checkpoint
        self._stopped = False

    def run(self) -> bool:
        """Run until all have ended or a signal comes; whether it was a signal.

        At SIGTERM, SIGUSR1 or the first Ctrl-C the runs save and end; at the second they are
        killed.
        """
        signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        before = {number: signal.signal(number, self._stop) for number in signals}
        try:
            while True:
                self._collect()
                if not self._stopped:
                    self._start_more()
                if not self._running:
                    return self._stopped
                time.sleep(PATIENCE)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        for started in self._running:
            if self._stopped and number == signal.SIGINT:
                os.killpg(started.process.pid, signal.SIGKILL)
            elif not self._stopped and started.process.poll() is None:
                started.process.terminate()
        if not self._stopped:
            _say(f"stopping: {len(self._running)} running save and end")
        self._stopped = True

    def _start_more(self) -> None:
        """Fill the free slots with the first runs that may start."""
        for member in list(self._waiting):
            if not self._free:
                return
            state = read_state(member)
            may_start = state.kind in ("waiting", "saved") or (
                state.kind == "failed" and self._retry
            )
            if state.kind == "blocked" and self._may_unblock(member):
                continue
            self._waiting.remove(member)
            if may_start:
                self._start(member)

    def _may_unblock(self, member: Member) -> bool:
        """Whether the run that this one starts from is still ahead in this queue."""
        ahead = (*self._waiting, *(started.member for started in self._running))
        return any(other.folder == member.source for other in ahead)

    def _start(self, member: Member) -> None:
        with disk_errors(member.folder, "choose another --output"):
            member.folder.mkdir(parents=True, exist_ok=True)
        claim = Lock(member.folder, ".queue")
        try:
            claim.take(patience=0)
        except UserError:
            return  # another queue runs it
        state = read_state(member)  # it may have ended between the look and the lock
        if state.kind in ("finished", "running"):
            claim.release()
            return
        slot = self._free.pop(0)
        with open(member.folder / LOG, "ab") as log:
            process = subprocess.Popen(
                command(member),
                cwd=Path.cwd(),
                env=_environment(slot, self._threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches it once, through the queue
            )
        self._running.append(Started(member, slot, process, claim, state.step))
        place = f"GPU {slot.gpu}" if slot.gpu is not None else "CPU"
        resumed = f", resumes after step {state.step:,}" if state.step else ""
        _say(f"start {member.folder} on {place}{resumed}")

    def _collect(self) -> None:
        """Take note of the runs that have ended, and free their slots."""
        for started in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(started)
            self._free.append(started.slot)
            code = started.process.returncode
            folder = started.member.folder
            with open(folder / LOG, "a", encoding="utf-8") as log:
                log.write(f"{ENDED}{code}\n")
            started.claim.release()
            state = read_state(started.member)
            reason = f": {state.reason}" if state.reason else ""
            _say(f"{state.kind} {folder}{reason}")
            killed = state.kind in ("saved", "waiting") and not self._stopped
            if killed and self._has_progressed(started, state):
                self._waiting.insert(0, started.member)

    def _has_progressed(self, started: Started, state: State) -> bool:
        """Whether a killed run is worth another start: not after three that reached nothing."""
        folder = started.member.folder
        if state.step > started.step:
            return True
        self._fruitless[folder] += 1
        if self._fruitless[folder] < 3:
            return True
        _say(f"left alone: {folder} was killed three times before a new checkpoint")
        return False


def _say(text: str) -> None:
    print(text, flush=True)


def command(member: Member) -> list[str]:
    """Return the command of one run, on one process."""
    return [sys.executable, *words(member), "--output", str(member.folder)]


def words(member: Member) -> list[str]:
    """Return the script and arguments of a run, without its folder."""
    script = "train.py" if member.checkpoint is None else "finetune.py"
    parts = [str(ROOT / script), "--recipe", member.given]
    if member.checkpoint is not None:
        parts += ["--checkpoint", member.checkpoint]
    if member.data_dir is not None:
        parts += ["--data-dir", member.data_dir]
    for override in member.overrides:
        parts += ["--set", override]
    return parts


def _environment(slot: Slot, threads: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment["CUDA_VISIBLE_DEVICES"] = slot.gpu if slot.gpu is not None else ""
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment
