"""The run's clock: seconds of training, evaluation and saving over all restarts."""

import time
from contextlib import contextmanager


class Clock:
    """Seconds of a run over all its restarts; training, evaluation and saving apart."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds = {"train": 0.0, "evaluate": 0.0, "save": 0.0} | (seconds or {})
        self.waited = 0.0  # for data, part of "train"
        self._part, self._since = "train", time.perf_counter()

    def _settle(self) -> None:
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str):
        """Count the block as `name` instead of training."""
        self._settle()
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._settle()
            self._part = before

    def now(self) -> dict[str, float]:
        self._settle()
        return dict(self.seconds)

    def waiting(self, batches):
        """The same batches, the time until each comes counted as waiting for data."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - start
            yield batch
