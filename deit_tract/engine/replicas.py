"""One process, or DistributedDataParallel: a replica of the model in every process."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from deit_tract import tract
from deit_tract.optim.build import clip_gradients, set_lr
from deit_tract.optim.lamb import Lamb
from deit_tract.recipe.settings.recipe import Recipe


class Replicas:
    """One process, or a replica of the model in each under DistributedDataParallel."""

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        bare: nn.Module,
        optimizer: torch.optim.Optimizer,
    ):
        self.accelerator, self.recipe, self.bare = accelerator, recipe, bare
        self.tract_layers = [layer for _, layer in tract.find(bare)]
        # whose norm is the one to show; under a gradient scaler a step may be left out
        clips = (
            isinstance(optimizer, Lamb)
            and recipe.optim.clip_grad is not None
            and accelerator.scaler is None
        )
        self._lamb = optimizer if clips else None
        self.model, self.optimizer = accelerator.prepare(bare, optimizer)
        if recipe.precision.compile:
            self.model.compile()  # in place: no wrapper, so names in checkpoints stay
        self._loss = torch.zeros((), device=accelerator.device)

    def lane(self, last: bool) -> AbstractContextManager:
        """Around a lane's forward and backward pass; gradients are exchanged in the process's last one."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add a lane's gradients; loss: the lane's mean over lanes, its share of the batch's loss."""
        # gradients are averaged over processes: the factor makes that the sum over all lanes
        self.accelerator.backward(loss * self.accelerator.num_processes)
        self._loss = self._loss + loss.detach()

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """Take the optimizer's step. Returns this process's share of the loss, the gradients' norm before clipping."""
        loss, self._loss = self._loss, torch.zeros_like(self._loss)
        set_lr(self.optimizer, lr)
        self.accelerator.unscale_gradients(self.optimizer)
        for layer in self.tract_layers:
            tract.finish_step(
                layer
            )  # of model.tract_gram "batch"; a lane's own is done in its backward pass
        norm = clip_gradients(self.recipe.optim, self.bare) if self._lamb is None else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, norm if self._lamb is None else self._lamb.grad_norm

    def whole(self) -> nn.Module:
        """A bare model with all the weights, for evaluation and saving; called on every process."""
        return self.bare

    def optimizer_state(self) -> dict:
        """The optimizer's whole state as a plain optimizer has it; called on every process."""
        return self.optimizer.state_dict()

    def load_optimizer(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)


class Exact(Replicas):
    """Sums the lanes' gradients in the order of the lanes: the same bits on any number of processes.

    Every process gets every lane's gradients: for tests, not for speed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        bare: nn.Module,
        optimizer: torch.optim.Optimizer,
    ):
        super().__init__(accelerator, recipe, bare, optimizer)
        self._parameters = [p for p in bare.parameters() if p.requires_grad]
        self._lanes: list[Tensor] = []  # this process's, each its loss and gradients in one vector

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
            total += self._of(lane)
        self._lanes.clear()
        loss, *grads = total.split([1, *(p.numel() for p in self._parameters)])
        for p, grad in zip(self._parameters, grads, strict=True):
            p.grad = grad.view_as(p)
        _, norm = super().step(lr)
        return loss[0] * self.accelerator.is_main_process, norm

    def _of(self, lane: int) -> Tensor:
        """A lane's loss and gradients, from the process that computed them."""
        turn, owner = divmod(lane, self.accelerator.num_processes)
        mine = owner == self.accelerator.process_index
        values = self._lanes[turn] if mine else torch.empty_like(self._lanes[0])
        if self.accelerator.num_processes > 1:
            dist.broadcast(values, owner)
        return values
