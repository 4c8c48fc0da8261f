"""The first layer with an optimizer of its own: SGD, as TrAct's theory has it, beside Adam for the rest (Figure 9)."""

import warnings

import torch
from torch import nn

from deit_tract import tract


def name_of(model: nn.Module) -> str | None:
    """The layer that sees the images: TrAct's, else where TrAct would go; None where there is no one."""
    found = tract.find(model)
    if found:
        return found[0][0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a frozen layer: it is asked for its place alone
            name = tract.apply_to_first_layer(model)
    except (TypeError, ValueError):
        return None
    tract.remove(model)
    return name


class Pair(torch.optim.Optimizer):
    """Two optimizers that act as one: the groups of both, stepped together, saved and loaded together."""

    def __init__(self, first: torch.optim.Optimizer, rest: torch.optim.Optimizer):
        self.parts = {"first": first, "rest": rest}
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure=None) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = self._groups()  # loading makes new ones
