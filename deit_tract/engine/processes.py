"""What processes do together: share a mistake, agree to stop, name the one that does not answer."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed.distributed_c10d import _get_default_store

from deit_tract.common.errors import UserError

# what a cluster sends before it takes the machine away
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# seconds in which the same Ctrl-C may come twice: from a terminal or cluster, and from a launcher
TWICE = 1.0


def on_all(accelerator: Accelerator, function: Callable, *args) -> Any:
    """Call a function on every process; a UserError on any ends all, and one of them reports it."""
    result = None
    mine = None
    try:
        result = function(*args)
    except UserError as error:
        mine = error
    failed = [rank for rank, error in enumerate(gather_object([mine])) if error is not None]
    if failed:
        raise mine if accelerator.process_index == failed[0] else SystemExit(2)
    return result


def on_main(accelerator: Accelerator, function: Callable, *args) -> Any:
    """Call a function on process 0 and return its result on all.

    If it raises UserError, the other processes exit silently.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function(*args)
        except UserError as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1] if accelerator.is_main_process else SystemExit(2)
    return outcome[0]


class Stop:
    """A signal to any process stops all of them after the same step.

    The flags are reduced over CPUs beside the step and read one step later, so that no process
    waits for its device: what was asked during step k ends the run after step k + 1. Within `with`,
    SIGTERM and SIGUSR1 only raise the flag; after `take_interrupts` so does the first Ctrl-C.
    """

    def __init__(self, accelerator: Accelerator, timeout: float):
        """timeout: seconds after which a process that has not finished its step is missing."""
        self.asked = False
        self.timeout = timeout
        self.rank = accelerator.process_index
        self.processes = accelerator.num_processes
        self._interrupted: float | None = None  # when the first Ctrl-C came
        self._work = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._handlers: dict = {}  # from before `with`
        if self.processes > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            who = f"host {socket.gethostname()}, pid {os.getpid()}"
            _get_default_store().set(f"who/{self.rank}", who)

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, error, *_) -> None:
        if error is None and self._work is not None:
            self._work.wait()  # of the last step
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        self.asked = True

    def take_interrupts(self) -> None:
        """From here on the first Ctrl-C asks to stop; a later one raises KeyboardInterrupt.

        Not if SIGINT is ignored, as in a shell's background.
        """
        if self._handlers and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number, frame) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self.asked = True
            if self.rank == 0:
                # not print: the signal may have come while a line was printed
                os.write(2, b"\nCtrl-C: saving after this step; press it again to quit at once\n")
        elif now - self._interrupted > TWICE:
            raise KeyboardInterrupt

    def agreed(self) -> bool:
        """Whether to stop here: every process asks after every step and gets the same answer."""
        if self.processes == 1:
            return self.asked
        if self._work is not None:
            self._work.wait()
        stop = bool(self._flag.item())
        self._flag = torch.tensor([self.asked], dtype=torch.int32)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)
        return stop

    def missing(self, step: int, patience: float = 5.0) -> UserError | None:
        """After a failed exchange: the error that names who is gone or hangs; None if all answer.

        Each process that gets here leaves a note; those that have left none after `patience`
        seconds are missing. The first of the others reports it, the rest exit silently.
        """
        if self.processes == 1:
            return None
        store = _get_default_store()
        try:
            store.set(f"answers/{self.rank}", b"1")
            time.sleep(patience)
            ranks = range(self.processes)
            absent = [rank for rank in ranks if not store.check([f"answers/{rank}"])]
            names = [f"process {rank} ({store.get(f'who/{rank}').decode()})" for rank in absent]
        except (RuntimeError, dist.DistError):  # the store went with its process
            what = "process 0 or its launcher is gone"
            return UserError(f"step {step}", what, "run the same command again")
        if not absent:
            return None
        if self.rank != min(set(ranks) - set(absent)):
            time.sleep(patience)  # the first to end makes the launcher end the others
            raise SystemExit(2)
        what = f"{', '.join(names)} did not answer: gone, or hanging for {self.timeout:g} s"
        instead = "check that process's output or stack; rerun the same command to resume"
        return UserError(f"step {step}", what, instead)
