"""Engines: how processes hold the model, sum the lanes' gradients and take the step. The loop is the same for all.

The launcher chooses: one process or DistributedDataParallel, or DeepSpeed with ZeRO stage 0 to 3. A checkpoint is
the same whichever engine wrote it, so a run may go on under another one.
"""

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
from deit_tract.engine.deepspeed import ZeRO, deepspeed_plugin, lanes_each, zero_stage
from deit_tract.engine.replicas import Exact, Replicas
from deit_tract.models.precision import explicit_attention
from deit_tract.optim.build import build_optimizer
from deit_tract.recipe.settings.recipe import Recipe

# torch's size, for one node: ViT-S's 88 MB of gradients go in 4 parts, ViT-B's 346 MB in 14, each while the backward
# pass goes on. gradient_as_bucket_view saves the copy into them.
BUCKETS = DistributedDataParallelKwargs(bucket_cap_mb=25, gradient_as_bucket_view=True)


def launch(recipe: Recipe, folder) -> Accelerator:
    """The Accelerator of this run. Raises UserError where it does not see what the launcher was asked for."""
    _check_precision(recipe)
    stage, started = zero_stage(), int(os.environ.get("WORLD_SIZE", 1))
    has_device = torch.accelerator.is_available()
    # NCCL's own watchdog ends the process without a word: it comes after the loop, which names who is missing
    timeout = timedelta(seconds=recipe.faults.timeout + (60 if has_device else 0))
    connection = InitProcessGroupKwargs(backend=None if has_device else "gloo", timeout=timeout)
    alone = started == 1 and stage is None
    accelerator = Accelerator(
        # without a device, Accelerate would take each process of a launcher for the only one; under DeepSpeed the
        # backend alone does it, and cpu=True would turn DeepSpeed off
        cpu=not has_device and stage is None,
        mixed_precision="no"
        if stage is not None
        else recipe.precision.autocast or "no",  # whatever the launcher's
        # DeepSpeed counts the lanes, else the loop does; also beats the launcher's variable
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            1 if stage is None else lanes_each(recipe)
        ),
        kwargs_handlers=[BUCKETS, *([] if alone else [connection])],
        deepspeed_plugin=None if stage is None else deepspeed_plugin(recipe, stage),
        log_with=list(recipe.log.trackers) or None,
        project_dir=str(folder),
    )
    if accelerator.num_processes != started:
        what = f"{started} processes were started, each sees {accelerator.num_processes}"
        raise UserError(
            "launch", what, "use torchrun or accelerate launch, on CPUs with ACCELERATE_USE_CPU=1"
        )
    if (
        "WORLD_SIZE" not in os.environ
        and {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    ):
        what = "accelerate launch was asked for several processes and started one, as it does with --cpu"
        raise UserError(
            "launch",
            what,
            "on CPUs use torchrun --nproc_per_node N, or unset MASTER_PORT for one process",
        )
    return accelerator


def _check_precision(recipe: Recipe) -> None:
    if recipe.precision.autocast == "fp16" and not torch.cuda.is_available():
        raise UserError(
            "precision.autocast", "fp16 needs a CUDA GPU", "use bf16, or null for float32"
        )
    if (
        recipe.precision.autocast == "bf16"
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported(False)
    ):
        raise UserError(
            "precision.autocast", f"{torch.cuda.get_device_name()} has no bf16", "use fp16"
        )


def prepare(accelerator: Accelerator, recipe: Recipe, bare: nn.Module) -> Replicas | ZeRO:
    """The engine of this launch around a bare model, with the recipe's optimizer."""
    optimizer = build_optimizer(recipe.optim, bare)
    if accelerator.device.type == "cpu" and recipe.precision.autocast == "bf16":
        explicit_attention(bare)
    if accelerator.deepspeed_plugin is not None:
        return ZeRO(accelerator, recipe, bare, optimizer)
    return (Exact if recipe.batch.exact else Replicas)(accelerator, recipe, bare, optimizer)
