"""The Accelerator of a run, and the engine that its launcher asks for: DDP or DeepSpeed."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.engine.deepspeed import ZeRO, deepspeed_plugin
from deit_tract.engine.engine import Engine
from deit_tract.engine.replicas import Exact, Replicas
from deit_tract.models.precision import explicit_attention, this_device
from deit_tract.optim.build import build_optimizer
from deit_tract.recipe.launch import check_launch, read_launch
from deit_tract.recipe.settings.recipe import Recipe

# torch's size, for one node: ViT-S's 88 MB of gradients go in 4 parts, ViT-B's 346 MB in 14, each
# while the backward pass continues. gradient_as_bucket_view saves the copy into them.
BUCKETS = DistributedDataParallelKwargs(bucket_cap_mb=25, gradient_as_bucket_view=True)


def launch(recipe: Recipe) -> Accelerator:
    """The Accelerator of this run. Raises UserErrors if the launch cannot run the recipe."""
    started = read_launch(os.environ, this_device())
    check_launch(recipe, started)
    stage, processes = started.zero_stage, started.processes
    has_device = torch.accelerator.is_available()
    # NCCL's watchdog gets 60 s more than us: it kills silently, while the loop names the missing.
    timeout = timedelta(seconds=recipe.faults.timeout + (60 if has_device else 0))
    connection = InitProcessGroupKwargs(backend=None if has_device else "gloo", timeout=timeout)
    alone = processes == 1 and stage is None
    accelerator = Accelerator(
        # Without cpu=True, Accelerate on a CPU machine treats each launched process as a
        # single-process run. Under DeepSpeed gloo is enough, and cpu=True would disable DeepSpeed.
        cpu=not has_device and stage is None,
        # whatever the launcher's
        mixed_precision=(recipe.precision.autocast or "no") if stage is None else "no",
        # The loop counts lanes, except under DeepSpeed.
        # This also overrides ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            1 if stage is None else recipe.batch.lanes // processes
        ),
        kwargs_handlers=[BUCKETS] if alone else [BUCKETS, connection],
        deepspeed_plugin=None if stage is None else deepspeed_plugin(recipe, started),
    )
    if accelerator.num_processes != processes:
        what = f"{processes} processes were started, each sees {accelerator.num_processes}"
        instead = "use torchrun or accelerate launch, on CPUs with ACCELERATE_USE_CPU=1"
        raise UserError("launch", what, instead)
    return accelerator


def prepare(accelerator: Accelerator, recipe: Recipe, bare: nn.Module) -> Engine:
    """The engine of this launch around a bare model, with the recipe's optimizer."""
    optimizer = build_optimizer(recipe.optim, bare)
    if accelerator.device.type == "cpu" and recipe.precision.autocast == "bf16":
        explicit_attention(bare)
    if accelerator.deepspeed_plugin is not None:
        return ZeRO(accelerator, recipe, bare, optimizer)
    engine = Exact if recipe.batch.exact else Replicas
    return engine(accelerator, recipe, bare, optimizer)
