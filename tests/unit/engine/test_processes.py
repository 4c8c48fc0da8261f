"""What a signal asks of a run."""

import os
import signal
from types import SimpleNamespace

import pytest

from deit_tract.engine import processes

ALONE = SimpleNamespace(process_index=0, num_processes=1)


def test_the_first_interrupt_asks_to_stop_and_a_later_one_quits(monkeypatch, capfd):
    with processes.Stop(ALONE, 1.0) as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)  # before the first step there is nothing to save
        stop.take_interrupts()
        for _ in range(2):  # from a terminal and a launcher
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() and "press it again to quit" in capfd.readouterr().err
        monkeypatch.setattr(processes, "TWICE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
