"""Two optimizers as one: SGD for the first layer, Adam for the rest (TrAct paper, Figure 9)."""

import torch


class Pair(torch.optim.Optimizer):
    """Two optimizers that act as one: stepped, saved and loaded together."""

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
        self.param_groups = self._groups()  # loading replaces them
