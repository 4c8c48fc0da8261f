"""What training needs to know of a task."""

from typing import Protocol

from torch import Tensor, nn

from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch


class Task(Protocol):
    """What a model learns, made from a recipe and its training images; without evaluations."""

    model: nn.Module  # without the wrappers of an engine
    source: Source  # of training batches

    def loss(self, model: nn.Module, batches: list[Batch], seeds: list[int]) -> dict[str, Tensor]:
        """Named losses of lanes of one size in one forward pass: means over all of them.

        "loss" is what is minimised, the others are logged beside it. A lane takes its draws from
        its own seed. `model` is the task's model as an engine has wrapped it.
        """
