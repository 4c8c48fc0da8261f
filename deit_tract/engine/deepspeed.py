"""DeepSpeed through Accelerate: ZeRO stages 0 to 3, every setting written out, states gathered to plain ones."""

import copy
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from types import MethodType

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from packaging.version import Version
from torch import Tensor, nn

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.models.precision import autocast
from deit_tract.optim.build import clip_gradients, set_lr
from deit_tract.recipe.settings.recipe import Recipe

OLDEST = Version(
    "0.19"
)  # of DeepSpeed: 0.18 has wrong gradients at stage 2, or none, from one patch to the next


def zero_stage() -> int | None:
    """The ZeRO stage that `accelerate launch --use_deepspeed --zero_stage N` asked for; None without DeepSpeed.

    Raises UserError for launcher's choices that the recipe decides or that are not supported.
    """
    environment = os.environ
    for engine in ("FSDP", "MEGATRON_LM"):
        if environment.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise UserError("launch", f"{engine} is not supported", "launch with DDP or DeepSpeed")
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    if environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        what = "a DeepSpeed config file is given, but the recipe decides what stands in it"
        raise UserError("launch", what, "give --zero_stage alone")
    for part in ("OPTIMIZER", "PARAM"):
        if environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none") != "none":
            raise UserError(
                "launch", f"offloading of {part.lower()} is not supported", "set it to none"
            )
    given = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if given not in ("0", "1", "2", "3"):
        raise UserError("launch", f"ZeRO stage {given}", "choose 0, 1, 2 or 3")
    return int(given)


def lanes_each(recipe: Recipe) -> int:
    """Lanes of each process, DeepSpeed's gradient accumulation steps. Raises UserError for uneven shares."""
    processes, lanes = int(os.environ.get("WORLD_SIZE", 1)), recipe.batch.lanes
    if recipe.task == "detect":
        raise UserError(
            "launch",
            "DeepSpeed is not supported for task detect",
            "launch without it: the model is small",
        )
    if lanes % processes:
        fits = [str(n) for n in range(1, lanes + 1) if lanes % n == 0]
        what = f"{lanes} lanes do not divide over {processes} processes, as DeepSpeed needs"
        raise UserError(
            "launch", what, f"start {', '.join(fits[:-1])} or {fits[-1]}" if fits[1:] else "start 1"
        )
    return lanes // processes


@dataclass
class _Plugin(DeepSpeedPlugin):
    """Accelerate's plugin without its call into transformers, which is for that library's models alone."""

    def set_deepspeed_weakref(self) -> None:
        pass


def deepspeed_plugin(recipe: Recipe, stage: int) -> DeepSpeedPlugin:
    """DeepSpeed's settings, all written out: what is left open, it or Accelerate would decide (a clip at 1.0)."""
    if recipe.optim.name == "lamb" and stage > 0:
        what = f"LAMB's trust ratio needs whole tensors, which ZeRO stage {stage} cuts up"
        raise UserError("launch", what, "use --zero_stage 0, or AdamW or SGD")
    if recipe.precision.autocast == "fp16":
        raise UserError(
            "precision.autocast",
            "fp16 under DeepSpeed is not supported",
            "use bf16, or launch with DDP",
        )
    if recipe.precision.compile:
        raise UserError(
            "precision.compile",
            "not supported under DeepSpeed",
            "set it to false, or launch with DDP",
        )
    if recipe.batch.lanes_per_forward not in ("auto", 1):
        what = "DeepSpeed counts lanes as forward passes"
        raise UserError("batch.lanes_per_forward", what, "set it to 1 or auto, or launch with DDP")
    if recipe.batch.exact:
        raise UserError(
            "batch.exact", "DeepSpeed sums gradients in its own order", "launch without DeepSpeed"
        )
    if recipe.optim.first_layer is not None:
        raise UserError(
            "optim.first_layer", "DeepSpeed takes one optimizer", "launch without DeepSpeed"
        )
    if recipe.model.tract_gram == "batch" and stage > 0:
        what = f"the batch's Gram matrix needs the whole gradient, which ZeRO stage {stage} cuts up"
        raise UserError("model.tract_gram", what, "use lane, or --zero_stage 0")
    _check_version()
    os.environ.pop(
        "ACCELERATE_CONFIG_DS_FIELDS", None
    )  # the stage has been read; what else it names is written below
    clip = recipe.optim.clip_grad if stage > 0 else None  # at stage 0 we clip, as without DeepSpeed
    config = {
        "train_micro_batch_size_per_gpu": recipe.batch.lane_size,
        "gradient_accumulation_steps": lanes_each(recipe),
        "train_batch_size": recipe.batch.size,
        "gradient_clipping": clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {
            "enabled": False
        },  # weights stay float32; the forward pass is under autocast, as with DDP
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
        hf_ds_config=config, zero_stage=stage, zero3_init_flag=False, gradient_clipping=clip or 0.0
    )


def _check_version() -> None:
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        raise UserError(
            "launch", "DeepSpeed is not installed", "pip install -r requirements.txt"
        ) from None
    if Version(version) < OLDEST:
        what = f"DeepSpeed {version} is too old: 0.18 has wrong gradients at stage 2"
        raise UserError("launch", what, f"install {OLDEST} or later")


def _no_compiler() -> None:
    """On CPUs, DeepSpeed would compile a shared-memory exchange at the first start; gloo does without."""
    with suppress(ImportError, AttributeError):
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False


class ZeRO:
    """DeepSpeed with ZeRO stage 0 to 3."""

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        bare: nn.Module,
        optimizer: torch.optim.Optimizer,
    ):
        self.accelerator, self.recipe, self.bare = accelerator, recipe, bare
        self.stage = accelerator.deepspeed_plugin.zero_stage
        self.tract_layers = [layer for _, layer in tract.find(bare)]
        self._twin = copy.deepcopy(bare).to(accelerator.device) if self.stage == 3 else None
        self._groups = [
            list(group["params"]) for group in optimizer.param_groups
        ]  # DeepSpeed puts its own there
        self._plain_groups = optimizer.state_dict()["param_groups"]
        self.optimizer = optimizer
        if recipe.precision.autocast:
            bare.forward = MethodType(
                _under_autocast(type(bare).forward, recipe, accelerator.device), bare
            )
        self.model, _ = accelerator.prepare(bare, optimizer)
        self._loss = torch.zeros((), device=accelerator.device)

    def lane(self, last: bool) -> AbstractContextManager:
        self.model.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed divides by the lanes of a process and averages over processes
        self.model.backward(loss * self.recipe.batch.lanes)
        self._loss = self._loss + loss.detach()

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        loss, self._loss = self._loss, torch.zeros_like(self._loss)
        set_lr(self.optimizer, lr)
        if self.stage > 0:  # DeepSpeed holds the gradients, and clips
            self.model.step()
            norm = self.model.get_global_grad_norm()
            return loss, torch.as_tensor(norm, dtype=torch.float32, device=self.accelerator.device)
        for layer in self.tract_layers:
            tract.finish_step(layer)
        norm = clip_gradients(self.recipe.optim, self.bare)
        self.model.step()
        return loss, norm

    def whole(self) -> nn.Module:
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
        shared = {
            key: value
            for key, value in flat.items()
            if not torch.is_tensor(value) or value.dim() == 0
        }
        state, names = {}, [key for key in flat if key not in shared]
        for index, p in enumerate(p for group in self._groups for p in group):
            if p.requires_grad and flat:
                full = {key: self._take(p, key) for key in names}
                state[index] = {key: copy.deepcopy(value) for key, value in shared.items()} | full
        return {"state": state, "param_groups": self._plain_groups}

    def load_optimizer(self, state: dict) -> None:
        if self.stage == 0:
            return self.optimizer.load_state_dict(state)
        entries = list(state["state"].values())
        if not entries:
            return
        shared = {k: v for k, v in entries[0].items() if not torch.is_tensor(v) or v.dim() == 0}
        names = [key for key in entries[0] if key not in shared]
        for flat in self._partitions():  # the state that the first step would make
            fresh = {key: torch.zeros_like(flat, requires_grad=False) for key in names}
            self.optimizer.state[flat] = copy.deepcopy(shared) | fresh
        for index, p in enumerate(p for group in self._groups for p in group):
            for key in names if index in state["state"] else ():
                self._put(p, state["state"][index][key], key)

    def _partitions(self) -> list[Tensor]:
        """The flat float32 tensors that the optimizer really steps, one a group."""
        zero = self.model.optimizer
        return (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )

    def _take(self, p: nn.Parameter, key: str) -> Tensor:
        """A parameter's optimizer state, whole, from the parts of all processes."""
        if self.stage == 3:
            from deepspeed.utils import safe_get_full_optimizer_state

            return safe_get_full_optimizer_state(p, key).cpu()
        whole = torch.zeros(p.numel(), device=p.device)
        if p._hp_mapping is not None:
            mine, part = self._part(p, key)
            whole[mine] = part
        dist.all_reduce(whole)
        return whole.view_as(p).cpu()

    def _part(self, p: nn.Parameter, key: str) -> tuple[slice, Tensor]:
        """At stage 1 and 2: which elements of a parameter this process steps, and their optimizer state."""
        here, there = p._hp_mapping.lp_fragment_address, p._hp_mapping.get_hp_fragment_address()
        flat = self._partitions()[p._hp_mapping.param_group_index]
        state = self.optimizer.state[flat][key]
        return slice(here.start, here.start + here.numel), state[
            there.start : there.start + there.numel
        ]

    def _put(self, p: nn.Parameter, value: Tensor, key: str) -> None:
        """Copy this process's part of a parameter's optimizer state to where DeepSpeed keeps it."""
        if self.stage == 3:
            from deepspeed.utils import safe_set_local_optimizer_state

            size = p.ds_tensor.numel()  # of each process's part; the last is padded
            first = size * self.accelerator.process_index
            part = torch.zeros(size, dtype=value.dtype)
            mine = value.flatten()[first : first + size]
            part[: len(mine)] = mine
            return safe_set_local_optimizer_state(p, part.to(self.accelerator.device), key)
        if p._hp_mapping is not None:
            mine, part = self._part(p, key)
            part.copy_(value.flatten()[mine])


def _under_autocast(forward, recipe: Recipe, device: torch.device):
    def cast(self, *args, **kwargs):
        with autocast(recipe, device):
            return forward(self, *args, **kwargs)

    return cast
