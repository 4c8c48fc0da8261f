"""Losses and gradient norm between two log lines, kept on the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

from deit_tract.common.errors import UserError


class Meter:
    """Named losses since the last log line and the last gradient norm, read only on demand."""

    def __init__(self, accelerator: Accelerator, state: dict | list | None):
        """state: of a checkpoint; older ones have a list [loss, steps]."""
        self.accelerator = accelerator
        self._last: Tensor | None = None  # this process's share of the last step's loss
        self.reset()
        if isinstance(state, list):
            loss, steps = state
            state = {"losses": {"loss": loss}, "steps": steps}
        if state is not None:  # summed over processes when it was saved
            self.steps = state["steps"]
            share = 1.0 if accelerator.is_main_process else 0.0
            losses = state["losses"].items()
            self.sums = {name: self._zero + share * total for name, total in losses}

    def reset(self) -> None:
        self._zero = torch.zeros((), device=self.accelerator.device)
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.norm = self._zero
        self.bad = torch.full_like(self._zero, float("inf"))  # the first step that was not finite

    def add(self, step: int, losses: dict[str, Tensor], norm: Tensor) -> None:
        """losses: the process's shares of the means over all lanes; "loss" is what is minimised."""
        if not self.steps:
            self.sums = dict.fromkeys(losses, self._zero)
        # after an older checkpoint there is only "loss" until the next log line
        self.sums = {name: total + losses[name] for name, total in self.sums.items()}
        self.steps += 1
        self._last = losses["loss"]
        self.norm = norm
        # under a gradient scaler an infinite norm is a skipped step, not the end
        finite = losses["loss"].isfinite()
        if not self.accelerator.scaler:
            finite = finite & norm.isfinite()
        self.bad = torch.where(finite, self.bad, self.bad.clamp(max=step))

    def last(self, share: float) -> float | None:
        """The last step's mean loss over this process's lanes, `share` of all; None before a step.

        Reads the device, and asks no other process.
        """
        return None if self._last is None else self._last.item() / share

    def read(self) -> tuple[dict[str, float], float]:
        """Mean losses over steps and lanes, and the last norm, on every process. One device read.

        Raises UserError naming the first step that was not finite.
        """
        mine = torch.stack([*self.sums.values(), self.bad]).unsqueeze(0)
        *columns, bad = self.accelerator.gather(mine).unbind(1)  # a row per process
        totals = [column.sum() for column in columns]
        *values, first_bad, norm = torch.stack([*totals, bad.min(), self.norm]).tolist()
        if first_bad != float("inf"):
            raise _not_finite(int(first_bad))
        if not self.accelerator.is_main_process:
            totals = [self._zero] * len(totals)
        names = list(self.sums)
        self.sums = dict(zip(names, totals, strict=True))
        means = [value / max(self.steps, 1) for value in values]
        return dict(zip(names, means, strict=True)), norm

    def state(self) -> dict:
        """What has been summed since the last log line, for a checkpoint; after `read`."""
        return {
            "losses": {name: total.item() for name, total in self.sums.items()},
            "steps": self.steps,
        }


def _not_finite(step: int) -> UserError:
    what = "loss or gradient norm is not finite; the checkpoints before it are kept"
    skip = f"repeat the command with --set faults.skip_steps=[{step}]"
    instead = f"lower optim.lr or change optim.clip_grad; to continue without this step, {skip}"
    return UserError(f"step {step}", what, instead)
