"""How fast a run goes: images/s, share of the peak, waiting and memory for the log."""

import resource
import sys

import torch

from deit_tract.common.errors import UserError
from deit_tract.common.text import GIB
from deit_tract.models.build import build_model
from deit_tract.plan import cost
from deit_tract.plan.gpus import known_peak
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.train.clock import Clock


class Pace:
    """What a run did since its last log line."""

    def __init__(
        self, recipe: Recipe, device: torch.device, processes: int, clock: Clock, step: int
    ):
        stated = recipe.log.peak_tflops
        self.recipe = recipe
        self.device = device
        self.processes = processes
        self.clock = clock
        self.peak = 1e12 * stated if stated else known_peak(device, recipe.precision.autocast)
        self.flops = None if self.peak is None else _training_flops(recipe)
        self._step = step
        self._trained = clock.now()["train"]

    def since_last(self, step: int) -> dict[str, float | None]:
        """Return the values for a log line, and start over.

        images_per_s: over all processes; data_wait: share of the training time; mfu: None if the
        peak is unknown; memory_gib: the most that tensors of process 0 held on its GPU, or on a CPU
        the most that the process used.
        """
        trained = self.clock.now()["train"]
        seconds = max(trained - self._trained, 1e-9)
        rate = (step - self._step) * self.recipe.batch.size / seconds
        self._step = step
        self._trained = trained
        waited = self.clock.take_waited()
        return {
            "images_per_s": rate,
            "data_wait": min(waited / seconds, 1.0),
            "mfu": rate * self.flops / (self.peak * self.processes) if self.flops else None,
            "memory_gib": round(peak_memory(self.device) / GIB, 3),
        }


def _training_flops(recipe: Recipe) -> int | None:
    """Return the FLOPs of an image's forward and backward pass; None if they cannot be counted."""
    try:
        with torch.device("meta"):
            return cost.measure(recipe, build_model(recipe)).training
    except UserError:
        return None


def peak_memory(device: torch.device) -> int:
    """Return the most memory used so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
