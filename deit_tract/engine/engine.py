"""The engine: how processes hold the model, sum the lanes' gradients and take the step."""

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from deit_tract import tract
from deit_tract.optim.build import set_lr
from deit_tract.recipe.settings.recipe import Recipe


class Engine(Protocol):
    """Replicas (one process, or DistributedDataParallel), Exact and ZeRO (DeepSpeed) follow it.

    The training loop is the same for all of them, and so is a checkpoint: a run may resume under
    another engine.
    """

    model: nn.Module  # the wrapped model: forward passes go through it
    bare: nn.Module  # the model without wrappers
    optimizer: Optimizer

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, bare: nn.Module, optimizer: Optimizer
    ):
        self.accelerator = accelerator
        self.recipe = recipe
        self.bare = bare
        self.optimizer = optimizer
        self._tract_layers = [layer for _, layer in tract.find(bare)]
        self._loss = torch.zeros((), device=accelerator.device)

    def lane(self, last: bool) -> AbstractContextManager:
        """Surround a forward and backward pass; gradients are exchanged in the process's last."""

    def backward(self, loss: Tensor) -> None:
        """Add a lane's gradients; loss: the lane's mean over lanes, its share of the batch's."""

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """Update the weights.

        Returns this process's share of the batch's loss, and the norm of all gradients before
        clipping; both are scalars on the device.
        """

    def full_model(self) -> nn.Module:
        """A bare model with all the weights, to evaluate and save; called on every process."""

    def optimizer_state(self) -> dict:
        """The complete state as a plain optimizer has it; called on every process."""

    def load_optimizer(self, state: dict) -> None:
        """Take over what `optimizer_state` of any engine returned."""

    def _begin_step(self, lr: float) -> Tensor:
        """Set the learning rate. Returns the loss added up since the last step."""
        loss = self._loss
        self._loss = torch.zeros_like(loss)
        set_lr(self.optimizer, lr)
        return loss

    def _finish_tract(self) -> None:
        """Apply the batch's Gram matrices (a lane's own is applied in its backward pass)."""
        for layer in self._tract_layers:
            tract.finish_step(layer)
