"""One process, or DistributedDataParallel: a replica of the model in every process."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from deit_tract.engine.engine import Engine
from deit_tract.optim.build import clip_gradients
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.settings.recipe import Recipe


class Replicas(Engine):
    """One process, or a replica of the model in each under DistributedDataParallel."""

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, bare: nn.Module, optimizer: Optimizer
    ):
        super().__init__(accelerator, recipe, bare, optimizer)
        self._clipping = None
        # An optimizer that clips inside step() knows the norm from before, so that is the one to
        # log, unless a gradient scaler may skip the step.
        clips_itself = OPTIMIZERS[recipe.optim.name].clips_itself and not recipe.optim.first_layer
        if clips_itself and recipe.optim.clip_grad is not None and accelerator.scaler is None:
            self._clipping = optimizer
        self.model, self.optimizer = accelerator.prepare(bare, optimizer)
        if recipe.precision.compile:
            self.model.compile()  # in place: no wrapper, so names in checkpoints stay

    def lane(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        # gradients are averaged over processes: the factor makes that the sum over all lanes
        self.accelerator.backward(loss * self.accelerator.num_processes)
        self._loss = self._loss + loss.detach()

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        loss = self._begin_step(lr)
        self.accelerator.unscale_gradients(self.optimizer)
        self._finish_tract()
        norm = None if self._clipping else clip_gradients(self.recipe.optim, self.bare)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, self._clipping.grad_norm if self._clipping else norm

    def full_model(self) -> nn.Module:
        return self.bare

    def optimizer_state(self) -> dict:
        return self.optimizer.state_dict()

    def load_optimizer(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)


class Exact(Replicas):
    """Sums the gradients in the order of the lanes: the same bits on any number of processes.

    Every process gets the gradients of every lane: for tests, not for speed.
    """

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, bare: nn.Module, optimizer: Optimizer
    ):
        super().__init__(accelerator, recipe, bare, optimizer)
        self._parameters = [p for p in bare.parameters() if p.requires_grad]
        # of this process's lanes: each lane's loss and gradients in one vector
        self._lanes: list[Tensor] = []

    def lane(self, last: bool) -> AbstractContextManager:
        return self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._lanes.append(torch.cat([loss.detach().view(1), nn.utils.parameters_to_vector(grads)]))
        for p in self._parameters:
            p.grad = None

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(self._lanes[0])
        for lane in range(self.recipe.batch.lanes):
            total += self._lane(lane)
        self._lanes.clear()
        loss, *grads = total.split([1, *(p.numel() for p in self._parameters)])
        for p, grad in zip(self._parameters, grads, strict=True):
            p.grad = grad.view_as(p)
        _, norm = super().step(lr)
        return loss[0] * self.accelerator.is_main_process, norm

    def _lane(self, lane: int) -> Tensor:
        """A lane's loss and gradients, from the process that computed them."""
        turn, owner = divmod(lane, self.accelerator.num_processes)
        mine = owner == self.accelerator.process_index
        values = self._lanes[turn] if mine else torch.empty_like(self._lanes[0])
        if self.accelerator.num_processes > 1:
            dist.broadcast(values, owner)
        return values
