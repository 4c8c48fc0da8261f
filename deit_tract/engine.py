"""Engines: how processes hold the model, sum the lanes' gradients and take the step. The loop is the same for all.

The launcher chooses: one process or DistributedDataParallel, or DeepSpeed with ZeRO stage 0 to 3. A checkpoint is
the same whichever engine wrote it, so a run may go on under another one.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from deit_tract import models, optim, tract, zero
from deit_tract.errors import UserError
from deit_tract.lamb import Lamb
from deit_tract.schema import Recipe

# torch's size, for one node: ViT-S's 88 MB of gradients go in 4 parts, ViT-B's 346 MB in 14, each while the backward
# pass goes on. gradient_as_bucket_view saves the copy into them.
BUCKETS = DistributedDataParallelKwargs(bucket_cap_mb=25, gradient_as_bucket_view=True)


def launch(recipe: Recipe, folder) -> Accelerator:
    """The Accelerator of this run. Raises UserError where it does not see what the launcher was asked for."""
    _check_precision(recipe)
    stage, started = zero.stage(), int(os.environ.get("WORLD_SIZE", 1))
    has_device = torch.accelerator.is_available()
    # NCCL's own watchdog ends the process without a word: it comes after the loop, which names who is missing
    timeout = timedelta(seconds=recipe.faults.timeout + (60 if has_device else 0))
    connection = InitProcessGroupKwargs(backend=None if has_device else "gloo", timeout=timeout)
    alone = started == 1 and stage is None
    accelerator = Accelerator(
        # without a device, Accelerate would take each process of a launcher for the only one; under DeepSpeed the
        # backend alone does it, and cpu=True would turn DeepSpeed off
        cpu=not has_device and stage is None,
        mixed_precision="no" if stage is not None else recipe.precision.autocast or "no",  # whatever the launcher's
        # DeepSpeed counts the lanes, else the loop does; also beats the launcher's variable
        gradient_accumulation_plugin=GradientAccumulationPlugin(1 if stage is None else zero.lanes_each(recipe)),
        kwargs_handlers=[BUCKETS, *([] if alone else [connection])],
        deepspeed_plugin=None if stage is None else zero.plugin(recipe, stage),
        log_with=list(recipe.log.trackers) or None,
        project_dir=str(folder),
    )
    if accelerator.num_processes != started:
        what = f"{started} processes were started, each sees {accelerator.num_processes}"
        raise UserError("launch", what, "use torchrun or accelerate launch, on CPUs with ACCELERATE_USE_CPU=1")
    if "WORLD_SIZE" not in os.environ and {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        what = "accelerate launch was asked for several processes and started one, as it does with --cpu"
        raise UserError("launch", what, "on CPUs use torchrun --nproc_per_node N, or unset MASTER_PORT for one process")
    return accelerator


def _check_precision(recipe: Recipe) -> None:
    if recipe.precision.autocast == "fp16" and not torch.cuda.is_available():
        raise UserError("precision.autocast", "fp16 needs a CUDA GPU", "use bf16, or null for float32")
    if recipe.precision.autocast == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise UserError("precision.autocast", f"{torch.cuda.get_device_name()} has no bf16", "use fp16")


def prepare(accelerator: Accelerator, recipe: Recipe, bare: nn.Module) -> "Replicas | zero.ZeRO":
    """The engine of this launch around a bare model, with the recipe's optimizer."""
    optimizer = optim.build(recipe.optim, bare)
    if accelerator.device.type == "cpu" and recipe.precision.autocast == "bf16":
        models.explicit_attention(bare)
    if accelerator.deepspeed_plugin is not None:
        return zero.ZeRO(accelerator, recipe, bare, optimizer)
    return (Exact if recipe.batch.exact else Replicas)(accelerator, recipe, bare, optimizer)


class Replicas:
    """One process, or a replica of the model in each under DistributedDataParallel."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, bare: nn.Module, optimizer: torch.optim.Optimizer):
        self.accelerator, self.recipe, self.bare = accelerator, recipe, bare
        self.tract_layers = [layer for _, layer in tract.find(bare)]
        # whose norm is the one to show; under a gradient scaler a step may be left out
        clips = isinstance(optimizer, Lamb) and recipe.optim.clip_grad is not None and accelerator.scaler is None
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
        optim.set_lr(self.optimizer, lr)
        self.accelerator.unscale_gradients(self.optimizer)
        for layer in self.tract_layers:
            tract.finish_step(layer)  # of model.tract_gram "batch"; a lane's own is done in its backward pass
        norm = optim.clip(self.recipe.optim, self.bare) if self._lamb is None else None
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

    def __init__(self, accelerator: Accelerator, recipe: Recipe, bare: nn.Module, optimizer: torch.optim.Optimizer):
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
