"""Batch normalisation's running statistics where a batch has several lanes, on any number of processes.

A lane is normalised by its own mean and variance, as a batch on one GPU of the reference. Its running statistics would
then depend on how many lanes a process happens to compute: each lane would move them once, and only process 0's would
count. Here every lane moves them from where the step began, and the step's are the mean over all lanes: they move once
a step, by the mean of the lanes' statistics, whatever the number of processes. With one lane nothing is done: they are
torch's, of a single GPU. Weights never depend on them, evaluations do; checkpoints hold them, and the EMA averages them
like weights.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """Of a model about to be trained, in the state it stands at."""

    def __init__(self, model: nn.Module, lanes: int):
        layers = [
            layer
            for layer in model.modules()
            if isinstance(layer, _NormBase) and layer.track_running_stats
        ]
        layers = layers if lanes > 1 else []
        self.buffers = [
            buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)
        ]
        self.counters = [layer.num_batches_tracked for layer in layers]  # of steps here
        self.start = [buffer.clone() for buffer in self.buffers]
        self.lanes = torch.zeros(
            lanes, sum(map(len, self.buffers))
        )  # of the step, each what a lane made of them

    @torch.no_grad()
    def add_lane(self, lane: int) -> None:
        """After a lane's forward: keep what it made of the statistics, and take them back."""
        if not self.buffers:
            return
        self.lanes = self.lanes.to(self.buffers[0].device)
        self.lanes[lane] = torch.cat(self.buffers)
        torch._foreach_copy_(self.buffers, self.start)
        torch._foreach_sub_(self.counters, 1)

    @torch.no_grad()
    def finish_step(self) -> None:
        """After the last lane, on every process: the mean over all lanes becomes the model's statistics."""
        if not self.buffers:
            return
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(
                self.lanes
            )  # each lane is of one process and zero elsewhere: no sum is rounded
        torch._foreach_copy_(
            self.start, self.lanes.mean(0).split([len(buffer) for buffer in self.buffers])
        )
        torch._foreach_copy_(self.buffers, self.start)
        torch._foreach_add_(self.counters, 1)
        self.lanes.zero_()
