"""What training and tools/evaluate.py need to know of an evaluation."""

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.recipe.settings.recipe import Evaluate, Headline


class Evaluator(Protocol):
    """What a model is measured on, by what, and how often."""

    name: str  # prefix of its metrics unless it is the first of its recipe
    headline: Headline  # the metric that decides which evaluation is the best
    source: Source  # of the evaluated samples
    settings: Evaluate  # how often, and images per process and forward pass
    workers: int  # loader processes

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Sums over a batch, to be added over batches and processes; "count" counts samples.

        "records", if there, is a list with an entry per sample, which come together in the data
        set's order.
        """

    def summarize(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Metrics from the sums over all samples."""

    def report(self, sums: dict[str, Any], folder: Path) -> None:
        """Write what there is to show beside the metrics, after `summarize`."""
