"""A profiler trace of some steps, on demand."""

from pathlib import Path

import torch

from deit_tract.common.files import disk_errors

STEPS = 3


class Trace:
    """A PyTorch profiler trace of STEPS steps from `first` on, written by process 0.

    A context manager; it goes to the run's folder as profile_step_FIRST.json.gz.
    """

    def __init__(self, first: int | None, folder: Path, main: bool):
        self.first = first if main else None
        self.path = folder / f"profile_step_{first}.json.gz"
        self._profile: torch.profiler.profile | None = None

    def __enter__(self) -> "Trace":
        return self

    def before(self, step: int) -> None:
        """Call before each step, with its number in the log."""
        if step == self.first:
            # by default of the CPU, and of a GPU if there is one
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()
        elif self._profile is not None and step == self.first + STEPS:
            self._write()

    def _write(self) -> None:
        profile = self._profile
        self._profile = None
        profile.stop()
        with disk_errors(self.path, "free some space"):
            profile.export_chrome_trace(str(self.path))

    def __exit__(self, kind, error, traceback) -> None:
        if self._profile is not None:
            self._write()
