"""The training loop. Accelerate launches, wraps, casts and reduces; data, schedule and randomness are ours."""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from timm.utils import ModelEmaV3
from torch import Tensor

from deit_tract import checkpoint, models, optim, tract
from deit_tract.data.stream import Stream, Views, checked, lanes_of, loader
from deit_tract.errors import UserError
from deit_tract.evaluate import evaluate
from deit_tract.log import Clock, RunLog, check_trackers, open_folder
from deit_tract.schema import Recipe
from deit_tract.tasks.classify import Classify


def launch(recipe: Recipe, folder: Path) -> Accelerator:
    """The Accelerator of this run. Raises UserError where it does not see what the launcher was asked for."""
    for engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false") == "true":
            raise UserError(
                "launch", f"{engine} is not supported", "launch without it: each process holds the model whole"
            )
    if recipe.precision.autocast == "fp16" and not torch.cuda.is_available():
        raise UserError("precision.autocast", "fp16 needs a CUDA GPU", "use bf16, or null for float32")
    if recipe.precision.autocast == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise UserError("precision.autocast", f"{torch.cuda.get_device_name()} has no bf16", "use fp16")
    check_trackers(recipe)
    accelerator = Accelerator(
        # without a device, Accelerate would take each process of a launcher for the only one
        cpu=not torch.accelerator.is_available(),
        mixed_precision=recipe.precision.autocast or "no",  # the recipe's, whatever the launcher's default
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # lanes are ours; also beats the variable
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        log_with=list(recipe.log.trackers) or None,
        project_dir=str(folder),
    )
    environment = os.environ
    started = int(environment.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        what = f"{started} processes were started, each sees {accelerator.num_processes}"
        raise UserError("launch", what, "use torchrun or accelerate launch, on CPUs with ACCELERATE_USE_CPU=1")
    if "WORLD_SIZE" not in environment and {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= environment.keys():
        what = "accelerate launch was asked for several processes and started one, as it does with --cpu"
        raise UserError("launch", what, "on CPUs use torchrun --nproc_per_node N, or unset MASTER_PORT for one process")
    return accelerator


def train(recipe: Recipe, folder: Path, weights: str | None = None) -> dict:
    """Run a recipe in a folder, or go on with the run that is there; `weights` is what to start from.

    Returns the run's summary. Raises UserError on every mistake of a person and on a loss that is not finite.
    """
    accelerator = launch(recipe, folder)
    _on_main(accelerator, open_folder, folder, recipe, accelerator)
    newest = _on_main(accelerator, checkpoint.newest, folder / "checkpoints")
    run = _together(accelerator, Run, recipe, folder, accelerator, newest, weights)
    try:
        run.train()
    except BaseException as error:
        with suppress(UserError):  # a full disk: the first error is the one to show
            run.log.close(run.step, run.clock, f"stopped: {str(error) or type(error).__name__}")
        raise
    summary = run.log.close(run.step, run.clock, "finished")
    accelerator.end_training()
    return summary


class Run:
    """One run on one process: model, optimizer, stream, and the step it stands at."""

    def __init__(
        self, recipe: Recipe, folder: Path, accelerator: Accelerator, newest: Path | None, weights: str | None
    ):
        """Start from step 0, from `weights` where given, or go on from the checkpoint `newest`."""
        self.recipe, self.accelerator = recipe, accelerator
        self.checkpoints = folder / "checkpoints"
        self.task = task = Classify(recipe)
        batch = recipe.batch
        self.lanes = lanes_of(accelerator.process_index, accelerator.num_processes, batch.lanes)
        self.stream = Stream(len(task.train_data), batch.lanes, batch.lane_size, recipe.augment.repeats, recipe.seed)
        per_epoch = self.stream.steps_per_epoch
        self.total = optim.total_steps(recipe.schedule, per_epoch)
        self.lr = optim.learning_rate(recipe, per_epoch)
        self.due = {
            "log": _every(recipe.log.every_steps, self.total),
            "evaluate": _every(optim.in_steps(recipe.evaluate, "every_", per_epoch), self.total),
            "save": _every(optim.in_steps(recipe.save, "every_", per_epoch), self.total),
        }
        if weights is not None and newest is None:  # a run that goes on has its own; the file may be gone by then
            models.load_weights(task.bare, _weights_file(weights), recipe.model.new_head)
        self.tract_layers = [layer for _, layer in tract.find(task.bare)]
        decay = recipe.ema.decay
        self.ema = None if decay is None else ModelEmaV3(task.bare, decay=decay).to(accelerator.device)
        self.model, self.optimizer = accelerator.prepare(task.bare, optim.build(recipe.optim, task.bare))
        progress = self._resume(newest)
        self.step = progress["step"]
        self.clock = Clock(progress["clock"])
        self.meter = Meter(accelerator, self.step, progress["meter"])
        published = recipe.expect.published
        self.log = RunLog(folder, accelerator, task.headline, self.step, self.total, progress["best"], published)
        self._mark = self.clock.now()["train"], self.step
        if recipe.log.trackers:
            accelerator.init_trackers(recipe.name)

    def train(self) -> None:
        """Every step from where the run stands to its end."""
        self.log.say(self._headline())
        views = Views(self.task.train_data, self.task.train_transform)
        keys = self.stream.batches(range(self.step, self.total), self.lanes)
        pin = self.accelerator.device.type == "cuda"
        batches = self.clock.waiting(checked(loader(views, keys, self.recipe.data.workers, pin)))
        self.model.train()
        for step in range(self.step, self.total):
            loss, norm = self.optimizer_step(step, batches)
            self.step = step + 1
            self.meter.add(self.step, loss, norm)
            self._after_step()

    def optimizer_step(self, step: int, batches) -> tuple[Tensor, Tensor]:
        """One lane after the other, then the update. Returns the loss of this process's lanes and the gradient norm."""
        accelerator, lanes = self.accelerator, self.recipe.batch.lanes
        lr = self.lr(step)
        optim.set_lr(self.optimizer, lr)
        total = torch.zeros((), device=accelerator.device)
        for lane in self.lanes:
            batch = [tensor.to(accelerator.device, non_blocking=True) for tensor in next(batches)]
            last = lane == self.lanes[-1]
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.task.loss(self.model, batch, self.stream.lane_seed(step, lane))["loss"] / lanes
                # gradients are averaged over processes: the factor makes that the sum over all lanes
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        accelerator.unscale_gradients(self.optimizer)
        for layer in self.tract_layers:
            tract.finish_step(layer)  # of model.tract_gram "batch"; a lane's own is done in its backward pass
        norm = optim.clip(self.recipe.optim, self.task.bare)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.task.bare)
        return total, norm

    def _after_step(self) -> None:
        due = {name for name, when in self.due.items() if when(self.step)}
        if not due:
            return
        loss, norm = self.meter.read()  # also where only a save is due: what is not finite must not be saved
        if "log" in due:
            self.log.progress(self._progress(loss, norm), self.recipe.batch.size)
            self.meter.reset()
        if "evaluate" in due:
            with self.clock.part("evaluate"):
                self.log.evaluation(self._position() | self._evaluate())
        if "save" in due:
            with self.clock.part("save"):
                _on_main(self.accelerator, self._save)

    def _evaluate(self) -> dict[str, float]:
        metrics = evaluate(self.task, self.task.bare, self.recipe, self.accelerator)
        if self.ema is not None:
            average = evaluate(self.task, self.ema.module, self.recipe, self.accelerator)
            metrics |= {f"ema_{name}": value for name, value in average.items()}
        return metrics

    def _position(self) -> dict[str, float]:
        return {"step": self.step, "epoch": self.step / self.stream.steps_per_epoch}

    def _progress(self, loss: float, norm: float) -> dict[str, float]:
        train = self.clock.now()["train"]
        seconds, steps = max(train - self._mark[0], 1e-9), self.step - self._mark[1]
        wait, self.clock.waited = self.clock.waited / seconds, 0.0
        self._mark = train, self.step
        rate = {"images_per_s": steps * self.recipe.batch.size / seconds, "data_wait": min(wait, 1.0)}
        return self._position() | {"loss": loss, "lr": self.lr(self.step - 1), "grad_norm": norm} | rate

    def _save(self) -> None:
        scaler = self.accelerator.scaler
        weights = {"model": self.task.bare.state_dict()}
        if self.ema is not None:
            weights["ema"] = self.ema.module.state_dict()
        state = {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}
        progress = {"clock": self.clock.now(), "best": self.log.best, "meter": self.meter.state()}
        checkpoint.save(self.checkpoints, self.step, weights, state, progress, self.recipe.save.keep)

    def _resume(self, path: Path | None) -> dict[str, Any]:
        """Load a checkpoint into model, optimizer, EMA and scaler; its progress, or that of step 0 without one."""
        if path is None:
            return {"step": 0, "clock": None, "best": None, "meter": None}
        weights, state, progress = checkpoint.read(path)
        self.task.bare.load_state_dict(weights["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(weights["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return progress

    def _headline(self) -> str:
        """What runs where, in one line."""
        recipe, batch = self.recipe, self.recipe.batch
        parameters = sum(p.numel() for p in self.task.bare.parameters())
        tract = f"TrAct {recipe.model.tract}" if recipe.model.tract else "no TrAct"
        begin = f"from step {self.step}" if self.step else f"{self.stream.steps_per_epoch} an epoch"
        return (
            f"{recipe.name}: {recipe.model.name}, {parameters:,} parameters, {tract}; "
            f"{len(self.task.train_data):,} + {len(self.task.val_data):,} images; "
            f"{batch.lanes} lanes of {batch.lane_size} on {self.accelerator.num_processes} process(es), "
            f"{self.accelerator.device.type}, {recipe.precision.autocast or 'float32'}; {self.total:,} steps, {begin}"
        )


class Meter:
    """Loss and gradient norm since the last log line, kept on the device until they are read."""

    def __init__(self, accelerator: Accelerator, step: int, state: list | None):
        self.accelerator = accelerator
        self.reset()
        if state is not None:  # summed over processes when it was saved
            loss, self.steps = state
            self.loss += loss if accelerator.is_main_process else 0.0

    def reset(self) -> None:
        zero = torch.zeros((), device=self.accelerator.device)
        self.steps, self.loss, self.norm = 0, zero, zero
        self.bad = torch.full_like(zero, float("inf"))  # the first step that was not finite

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        self.steps += 1
        self.loss, self.norm = self.loss + loss, norm
        # under a gradient scaler an infinite norm is a skipped step, not the end
        finite = loss.isfinite() if self.accelerator.scaler else loss.isfinite() & norm.isfinite()
        self.bad = torch.where(finite, self.bad, self.bad.clamp(max=step))

    def read(self) -> tuple[float, float]:
        """Mean loss over steps and lanes, and the last gradient norm, on every process. Waits for the device.

        Raises UserError naming the first step that was not finite.
        """
        shares = self.accelerator.gather(torch.stack([self.loss, self.bad]).unsqueeze(0))
        loss, bad = shares[:, 0].sum(), shares[:, 1].min().item()
        if bad != float("inf"):
            what = "loss or gradient norm is not finite; the checkpoints before it are kept"
            raise UserError(f"step {int(bad)}", what, "lower optim.lr, set optim.clip_grad or look at the data")
        self.loss = loss if self.accelerator.is_main_process else torch.zeros_like(loss)
        return loss.item() / self.steps, self.norm.item()

    def state(self) -> list:
        """What has been summed since the last log line, for a checkpoint; after `read`."""
        return [self.loss.item(), self.steps]


def _weights_file(source: str) -> str:
    """The weights that --checkpoint means: of a run's newest checkpoint, else what it says."""
    if not (Path(source) / "checkpoints").is_dir():
        return source
    newest = checkpoint.newest(Path(source) / "checkpoints")
    if newest is None:
        raise UserError(source, "this run has no checkpoint yet")
    return str(newest / "model.safetensors")


def _every(steps: int | None, total: int) -> Callable[[int], bool]:
    """Whether something is due after so many steps: at the end, and every `steps` where given."""
    return lambda done: done == total or (steps is not None and done % max(steps, 1) == 0)


def _together(accelerator: Accelerator, function: Callable, *args) -> Any:
    """Call a function on every process; a UserError on any ends all, and one of them says it."""
    result, mine = None, None
    try:
        result = function(*args)
    except UserError as error:
        mine = error
    failed = [rank for rank, error in enumerate(gather_object([mine])) if error is not None]
    if failed:
        raise mine if accelerator.process_index == failed[0] else SystemExit(2)
    return result


def _on_main(accelerator: Accelerator, function: Callable, *args) -> Any:
    """Call a function on process 0 alone and hand its result to all. Its UserError ends the others without a word."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function(*args)
        except UserError as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1] if accelerator.is_main_process else SystemExit(2)
    return outcome[0]
