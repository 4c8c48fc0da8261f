"""The run's clock: seconds of training, evaluation and saving over all restarts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Counts the seconds of a run, with training, evaluation and saving separate."""

    def __init__(self, seconds: dict[str, float] | None = None):
        """seconds: those until the last restart."""
        self.seconds = {"train": 0.0, "evaluate": 0.0, "save": 0.0} | (seconds or {})
        self._part = "train"
        self._since = time.perf_counter()
        self._waited = 0.0  # for data, part of "train"

    def _settle(self) -> None:
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as `name` instead of training."""
        self._settle()
        before = self._part
        self._part = name
        try:
            yield
        finally:
            self._settle()
            self._part = before

    def now(self) -> dict[str, float]:
        """Return the seconds of each part until now."""
        self._settle()
        return dict(self.seconds)

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the same batches, and count the time until each comes as waiting for data."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def take_waited(self) -> float:
        """Return the seconds spent waiting since the last call."""
        waited = self._waited
        self._waited = 0.0
        return waited
