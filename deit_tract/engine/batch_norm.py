"""Batch normalisation's running statistics over a batch's lanes, on any number of processes.

A lane is normalised by its own mean and variance, as a batch on one GPU of the reference. If each
lane moved the running statistics once, they would depend on how many lanes a process computes, and
only process 0's would count. Here every lane moves them from where the step began, and the step's
are the mean over all lanes: they move once per step, whatever the number of processes. With one
lane nothing is done: they are torch's, of a single GPU. Weights never depend on them, evaluations
do; checkpoints hold them, and the EMA averages them like weights.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """Running statistics of a model, starting from its current state."""

    def __init__(self, model: nn.Module, lanes: int):
        layers = [layer for layer in model.modules() if isinstance(layer, _NormBase)]
        layers = [layer for layer in layers if layer.track_running_stats and lanes > 1]
        self.buffers = []
        for layer in layers:
            self.buffers += [layer.running_mean, layer.running_var]
        self.counters = [layer.num_batches_tracked for layer in layers]  # of steps here
        self.start = [buffer.clone() for buffer in self.buffers]
        # of the step: each row what a lane made of them
        self.lanes = torch.zeros(lanes, sum(map(len, self.buffers)))

    @torch.no_grad()
    def add_lane(self, lane: int) -> None:
        """After a lane's forward pass: keep what it made of the statistics, and take them back."""
        if not self.buffers:
            return
        self.lanes = self.lanes.to(self.buffers[0].device)
        self.lanes[lane] = torch.cat(self.buffers)
        torch._foreach_copy_(self.buffers, self.start)
        torch._foreach_sub_(self.counters, 1)

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the last lane, on every process: give the model the mean over all lanes."""
        if not self.buffers:
            return
        if dist.is_available() and dist.is_initialized():
            # a lane is zero on all processes but one: no sum is rounded
            dist.all_reduce(self.lanes)
        mean = self.lanes.mean(0).split([len(buffer) for buffer in self.buffers])
        torch._foreach_copy_(self.start, mean)
        torch._foreach_copy_(self.buffers, self.start)
        torch._foreach_add_(self.counters, 1)
        self.lanes.zero_()
