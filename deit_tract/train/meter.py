"""Loss and gradient norm between two log lines, kept on the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

from deit_tract.common.errors import UserError


class Meter:
    """Loss and gradient norm since the last log line, kept on the device until they are read."""

    def __init__(self, accelerator: Accelerator, step: int, state: list | None):
        self.accelerator = accelerator
        self.reset()
        if state is not None:  # summed over processes when it was saved
            loss, self.steps = state
            self.loss += loss if accelerator.is_main_process else 0.0

    def reset(self) -> None:
        zero = torch.zeros((), device=self.accelerator.device)
        self.steps, self.loss, self.norm = 0, zero, zero
        self.bad = torch.full_like(zero, float("inf"))  # the first step that was not finite

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        self.steps += 1
        self.loss, self.norm = self.loss + loss, norm
        # under a gradient scaler an infinite norm is a skipped step, not the end
        finite = loss.isfinite() if self.accelerator.scaler else loss.isfinite() & norm.isfinite()
        self.bad = torch.where(finite, self.bad, self.bad.clamp(max=step))

    def read(self) -> tuple[float, float]:
        """Mean loss over steps and lanes, and the last gradient norm, on every process. Waits for the device.

        Raises UserError naming the first step that was not finite.
        """
        shares = self.accelerator.gather(torch.stack([self.loss, self.bad]).unsqueeze(0))
        loss, bad = shares[:, 0].sum(), shares[:, 1].min().item()
        if bad != float("inf"):
            what = "loss or gradient norm is not finite; the checkpoints before it are kept"
            leave_out = f"to go on without this step, repeat the command with --set faults.skip_steps=[{int(bad)}]"
            raise UserError(
                f"step {int(bad)}", what, f"lower optim.lr or set optim.clip_grad anew; {leave_out}"
            )
        self.loss = loss if self.accelerator.is_main_process else torch.zeros_like(loss)
        return loss.item() / max(self.steps, 1), self.norm.item()

    def state(self) -> list:
        """What has been summed since the last log line, for a checkpoint; after `read`."""
        return [self.loss.item(), self.steps]
