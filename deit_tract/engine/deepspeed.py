"""DeepSpeed through Accelerate: ZeRO stages 0 to 3, its settings, and its states as plain ones."""

import copy
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from types import MethodType

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from deit_tract import tract
from deit_tract.engine.engine import Engine
from deit_tract.models.precision import autocast
from deit_tract.optim.build import clip_gradients
from deit_tract.recipe.launch import Launch
from deit_tract.recipe.settings.recipe import Recipe


@dataclass
class _Plugin(DeepSpeedPlugin):
    """Accelerate's plugin without its call into transformers, which only serves its own models."""

    def set_deepspeed_weakref(self) -> None:
        pass


def deepspeed_plugin(recipe: Recipe, launch: Launch) -> DeepSpeedPlugin:
    """DeepSpeed's settings for a recipe that `check_launch` has passed.

    All of them are given: what is left open, DeepSpeed or Accelerate would decide (a clip at 1.0).
    """
    # the stage has been read; what else it names is given below
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    stage = launch.zero_stage
    # at stage 0 we clip, as without DeepSpeed
    clip = (recipe.optim.clip_grad or 0.0) if stage > 0 else 0.0
    config = {
        "train_micro_batch_size_per_gpu": recipe.batch.lane_size,
        "gradient_accumulation_steps": recipe.batch.lanes // launch.processes,
        "train_batch_size": recipe.batch.size,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # weights stay float32; the forward pass is under autocast, as with DDP
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "communication_data_type": "fp32",
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": torch.accelerator.is_available(),
            "stage3_gather_16bit_weights_on_model_save": False,  # we gather float32 ourselves
            "offload_optimizer": {"device": "none"},
            "offload_param": {"device": "none"},
        },
    }
    if not torch.accelerator.is_available():
        _no_compiler()
    return _Plugin(
        hf_ds_config=config, zero_stage=stage, zero3_init_flag=False, gradient_clipping=clip
    )


def _no_compiler() -> None:
    """Keep DeepSpeed on a CPU from compiling a shared-memory exchange: gloo does without."""
    with suppress(ImportError, AttributeError):
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False


class ZeRO(Engine):
    """DeepSpeed with ZeRO stage 0 to 3."""

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, bare: nn.Module, optimizer: Optimizer
    ):
        super().__init__(accelerator, recipe, bare, optimizer)
        self.stage = accelerator.deepspeed_plugin.zero_stage
        tract.check_engine(bare, self.stage)
        self._twin = copy.deepcopy(bare).to(accelerator.device) if self.stage == 3 else None
        # DeepSpeed puts its own parameters into the groups
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._plain_groups = optimizer.state_dict()["param_groups"]
        if recipe.precision.autocast:
            forward = _under_autocast(type(bare).forward, recipe, accelerator.device)
            bare.forward = MethodType(forward, bare)
        self.model, _ = accelerator.prepare(bare, optimizer)

    def lane(self, last: bool) -> AbstractContextManager:
        self.model.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed divides by the lanes of a process and averages over processes
        self.model.backward(loss * self.recipe.batch.lanes)
        self._loss = self._loss + loss.detach()

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        loss = self._begin_step(lr)
        if self.stage > 0:  # DeepSpeed holds the gradients, and clips
            self.model.step()
            norm = self.model.get_global_grad_norm()
            return loss, torch.as_tensor(norm, dtype=torch.float32, device=self.accelerator.device)
        self._finish_tract()
        norm = clip_gradients(self.recipe.optim, self.bare)
        self.model.step()
        return loss, norm

    def full_model(self) -> nn.Module:
        if self._twin is None:
            return self.bare
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.bare.parameters())), torch.no_grad():
            self._twin.load_state_dict(self.bare.state_dict())
        return self._twin

    def optimizer_state(self) -> dict:
        if self.stage == 0:
            return self.optimizer.state_dict()
        flat = next(iter(self.optimizer.state.values()), {})
        shared, names = _split_state(flat)
        state = {}
        for index, p in enumerate(self._parameters):
            if p.requires_grad and flat:
                state[index] = copy.deepcopy(shared) | {key: self._take(p, key) for key in names}
        return {"state": state, "param_groups": self._plain_groups}

    def load_optimizer(self, state: dict) -> None:
        if self.stage == 0:
            self.optimizer.load_state_dict(state)
            return
        entries = state["state"]
        if not entries:
            return
        shared, names = _split_state(next(iter(entries.values())))
        for flat in self._partitions():  # the state that the first step would make
            zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in names}
            self.optimizer.state[flat] = copy.deepcopy(shared) | zeros
        for index, p in enumerate(self._parameters):
            for key, value in entries.get(index, {}).items():
                if key in names:
                    self._put(p, value, key)

    def _partitions(self) -> list[Tensor]:
        """The flat float32 tensors that the optimizer really updates, one per group."""
        zero = self.model.optimizer
        if self.stage == 3:
            return zero.fp32_partitioned_groups_flat
        return zero.single_partition_of_fp32_groups

    def _take(self, p: nn.Parameter, key: str) -> Tensor:
        """A parameter's complete optimizer state, from the parts of all processes."""
        if self.stage == 3:
            from deepspeed.utils import safe_get_full_optimizer_state

            return safe_get_full_optimizer_state(p, key).cpu()
        full = torch.zeros(p.numel(), device=p.device)
        if p._hp_mapping is not None:
            mine, part = self._part(p, key)
            full[mine] = part
        dist.all_reduce(full)
        return full.view_as(p).cpu()

    def _part(self, p: nn.Parameter, key: str) -> tuple[slice, Tensor]:
        """At stages 1, 2: which elements of a parameter this process updates, and their state."""
        mapping = p._hp_mapping
        here = mapping.lp_fragment_address
        there = mapping.get_hp_fragment_address()
        state = self.optimizer.state[self._partitions()[mapping.param_group_index]][key]
        mine = slice(here.start, here.start + here.numel)
        return mine, state[there.start : there.start + there.numel]

    def _put(self, p: nn.Parameter, value: Tensor, key: str) -> None:
        """Copy this process's part of a parameter's optimizer state to where DeepSpeed keeps it."""
        if self.stage == 3:
            from deepspeed.utils import safe_set_local_optimizer_state

            size = p.ds_tensor.numel()  # of each process's part; the last is padded
            first = size * self.accelerator.process_index
            mine = value.flatten()[first : first + size]
            part = torch.zeros(size, dtype=value.dtype)
            part[: len(mine)] = mine
            safe_set_local_optimizer_state(p, part.to(self.accelerator.device), key)
        elif p._hp_mapping is not None:
            mine, part = self._part(p, key)
            part.copy_(value.flatten()[mine])


def _split_state(state: dict) -> tuple[dict, list[str]]:
    """What an optimizer's state shares among parameters, such as the step; names of its tensors."""
    names = [key for key, value in state.items() if torch.is_tensor(value) and value.dim() > 0]
    return {key: value for key, value in state.items() if key not in names}, names


def _under_autocast(forward, recipe: Recipe, device: torch.device):
    def cast(self, *args, **kwargs):
        with autocast(recipe, device):
            return forward(self, *args, **kwargs)

    return cast
