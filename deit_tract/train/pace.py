"""How fast a run goes: images/s, share of the peak, waiting and memory for the log; a profiler trace on demand."""

import resource
import sys
from pathlib import Path

import torch

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.common.text import GIB
from deit_tract.models.build import build_model
from deit_tract.plan import cost
from deit_tract.plan.gpus import known_peak
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.train.clock import Clock

TRACED = 3  # steps of a profiler trace


class Pace:
    """What a run did since its last log line."""

    def __init__(
        self, recipe: Recipe, device: torch.device, processes: int, clock: Clock, step: int
    ):
        self.recipe, self.device, self.processes, self.clock = recipe, device, processes, clock
        stated = recipe.log.peak_tflops
        self.peak = 1e12 * stated if stated else known_peak(device, recipe.precision.autocast)
        self.flops = None if self.peak is None else _training_flops(recipe)
        self._mark = clock.now()["train"], step

    def since_last(self, step: int) -> dict[str, float | None]:
        """images_per_s over all processes, data_wait (share of the time), mfu (None where the peak is not known).

        memory_gib: the most that tensors of process 0 held on its GPU, on a CPU the most that the process has used.
        """
        train = self.clock.now()["train"]
        seconds, steps = max(train - self._mark[0], 1e-9), step - self._mark[1]
        wait, self.clock.waited = self.clock.waited / seconds, 0.0
        self._mark = train, step
        rate = steps * self.recipe.batch.size / seconds
        mfu = rate * self.flops / (self.peak * self.processes) if self.flops else None
        memory = peak_memory(self.device) / GIB
        return {
            "images_per_s": rate,
            "data_wait": min(wait, 1.0),
            "mfu": mfu,
            "memory_gib": round(memory, 3),
        }


def _training_flops(recipe: Recipe) -> int | None:
    """Of an image's forward and backward pass; None where they cannot be counted."""
    try:
        with torch.device("meta"):
            return cost.measure(recipe, build_model(recipe)).training
    except UserError:
        return None


def peak_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilo = 1 if sys.platform == "darwin" else 1024
    return kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Trace:
    """A PyTorch profiler trace of three steps from `first` on, written to the run's folder by process 0."""

    def __init__(self, first: int | None, folder: Path, main: bool):
        self.first, self.path = first if main else None, folder / f"profile_step_{first}.json.gz"
        self._profile = None

    def __enter__(self) -> "Trace":
        return self

    def before(self, step: int) -> None:
        """Call before each step, as the log counts them."""
        if step == self.first:
            self._profile = torch.profiler.profile(
                record_shapes=True
            )  # of the CPU, and of a GPU where there is one
            self._profile.start()
        elif self._profile is not None and step == self.first + TRACED:
            self._write()

    def _write(self) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        with disk_errors(self.path, "free some space"):
            profile.export_chrome_trace(str(self.path))

    def __exit__(self, kind, error, traceback) -> None:
        if self._profile is not None:
            self._write()
