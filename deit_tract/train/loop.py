"""The training loop. Accelerate launches, wraps, casts and reduces; data, schedule and randomness are ours."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import default_collate

from deit_tract import tasks
from deit_tract.common.errors import UserError
from deit_tract.data.feed import lane_batches
from deit_tract.data.loader import Replaced, Views, checked, loader, worker_died
from deit_tract.data.resident import Resident
from deit_tract.data.stream import Stream
from deit_tract.engine.batch_norm import RunningStatistics
from deit_tract.engine.launch import launch, prepare
from deit_tract.engine.processes import Stop, on_all, on_main
from deit_tract.models.precision import resolve_precision
from deit_tract.recipe.launch import check_trackers, lanes_of
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.schedule.durations import in_steps, total_steps
from deit_tract.schedule.learning_rate import learning_rate
from deit_tract.train import checkpoint, start
from deit_tract.train.clock import Clock
from deit_tract.train.evaluate import evaluate
from deit_tract.train.folder import Lock, open_folder
from deit_tract.train.lanes import lanes_per_forward
from deit_tract.train.log import RunLog
from deit_tract.train.meter import Meter
from deit_tract.train.pace import Pace, Trace


def train(recipe: Recipe, folder: Path, weights: str | None = None) -> dict:
    """Run a recipe in a folder, or go on with the run that is there; `weights` is what to start from.

    Returns the run's summary, whose "exit" is "finished", or "preempted" after a signal to any process. Raises
    UserError on every mistake of a person, on a loss that is not finite and on a process that does not answer.
    """
    recipe = resolve_precision(recipe)
    check_trackers(recipe)
    accelerator = launch(recipe, folder)
    lock = Lock(folder)
    on_main(accelerator, lock.take)
    try:
        with Stop(accelerator, recipe.faults.timeout) as stop:
            on_main(accelerator, open_folder, folder, recipe, accelerator)
            newest = on_main(accelerator, checkpoint.newest, folder / "checkpoints")
            run = on_all(accelerator, Run, recipe, folder, accelerator, newest, weights)
            summary = _watched(run, stop)
            accelerator.end_training()
    finally:
        lock.release()
    return summary


def _watched(run: "Run", stop: Stop) -> dict:
    """Train, and leave a summary that says how it ended, whatever happens."""
    try:
        try:
            run.train(stop)
        except (
            RuntimeError
        ) as error:  # what a failed exchange between processes raises, among others
            known = worker_died(error) or stop.missing(run.step + 1)
            if known is None:
                raise
            raise known from error
    except BaseException as error:
        with suppress(
            UserError, RuntimeError
        ):  # a full disk, a loader: the first error is the one to show
            run.log.close(run.step, run.clock, f"stopped: {str(error) or type(error).__name__}")
        raise
    finally:
        run.writer.shutdown()
    return run.log.close(run.step, run.clock, "finished" if run.step == run.total else "preempted")


class Run:
    """One run on one process: model, optimizer, stream, and the step it stands at."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        newest: Path | None,
        weights: str | None,
    ):
        """Start from step 0, from `weights` where given, or go on from the checkpoint `newest`."""
        self.recipe, self.accelerator = recipe, accelerator
        self.folder, self.checkpoints, self.evaluations = (
            folder,
            folder / "checkpoints",
            folder / "evaluations",
        )
        self.task = task = tasks.build(recipe)
        batch = recipe.batch
        self.lanes = lanes_of(accelerator.process_index, accelerator.num_processes, batch.lanes)
        several = lanes_per_forward(recipe, task.bare, accelerator.device)
        self.forwards = [self.lanes[i : i + several] for i in range(0, len(self.lanes), several)]
        self.stream = Stream(
            len(task.train_data), batch.lanes, batch.lane_size, recipe.augment.repeats, recipe.seed
        )
        per_epoch = self.stream.steps_per_epoch
        self.total = total_steps(recipe.schedule, per_epoch)
        self.lr = learning_rate(recipe, per_epoch)
        self.due = {
            "log": _every(recipe.log.every_steps, self.total),
            "evaluate": _every(in_steps(recipe.evaluate, "every_", per_epoch), self.total),
            "save": _every(in_steps(recipe.save, "every_", per_epoch), self.total),
        }
        self.beginning = ""
        if (
            weights is not None and newest is None
        ):  # a run that goes on has its own; the file may be gone by then
            self.beginning = start.load_start_weights(task.bare, recipe, weights)
        decay = recipe.ema.decay
        self.ema = (
            None if decay is None else ModelEmaV3(task.bare, decay=decay).to(accelerator.device)
        )
        progress = self._start(newest)
        self.statistics = RunningStatistics(task.bare, batch.lanes)
        self.step = progress["step"]
        self.replaced = Replaced(recipe.data.skip_unreadable, progress.get("replaced", ()))
        self.writer = checkpoint.Writer(recipe.save.background)
        self.clock = Clock(progress["clock"])
        self.meter = Meter(accelerator, self.step, progress["meter"])
        published = recipe.expect.published
        self.log = RunLog(
            folder, accelerator, task.headline, self.step, self.total, progress["best"], published
        )
        self.pace = Pace(
            recipe, accelerator.device, accelerator.num_processes, self.clock, self.step
        )
        if recipe.log.trackers:
            # steps that a killed run wrote after its last checkpoint are dropped, as in metrics.jsonl
            accelerator.init_trackers(
                recipe.name, init_kwargs={"tensorboard": {"purge_step": self.step + 1}}
            )

    def train(self, stop: Stop) -> None:
        """Every step from where the run stands to its end, or to where the processes agree to stop."""
        self.log.say(self._headline() + self.beginning)
        if self.recipe.log.profile and not self.step < self.recipe.log.profile <= self.total:
            self.log.say(
                f"log.profile: step {self.recipe.log.profile} is not among those to come; no trace is written"
            )
        skip = {step - 1 for step in self.recipe.faults.skip_steps}
        steps = [step for step in range(self.step, self.total) if step not in skip]
        batches = self.clock.waiting(self._batches(steps))
        self.engine.model.train()
        with Trace(self.recipe.log.profile, self.folder, self.accelerator.is_main_process) as trace:
            for step in range(self.step, self.total):
                trace.before(step + 1)
                if step not in skip:
                    self.meter.add(step + 1, *self.optimizer_step(step, batches))
                self.step = step + 1
                self._after_step()
                if stop.agreed():
                    self._save_before_leaving()
                    break
        on_main(self.accelerator, self.writer.wait)

    def _batches(self, steps: list[int]) -> Iterator:
        """The task's batches on this process's device: for each step, for each of its lanes."""
        task, data, device = self.task, self.recipe.data, self.accelerator.device
        keys = self.stream.batches(steps, self.lanes)
        if isinstance(task.train_data, Resident):
            return checked(task.train_data.batches(keys, data.workers, device))
        views = Views(task.train_data, task.train_transform, bool(data.skip_unreadable))
        if task.collate is default_collate:
            return lane_batches(
                views, self.stream, steps, self.lanes, data.workers, device, self.replaced
            )
        batches = checked(
            loader(views, keys, data.workers, device.type == "cuda", task.collate), self.replaced
        )
        return (send_to_device(batch, device, non_blocking=True) for batch in batches)

    def optimizer_step(self, step: int, batches) -> tuple[Tensor, Tensor]:
        """The lanes' gradients, then the update. Returns this process's share of the loss and the gradient norm."""
        model = self.engine.model
        for lanes in self.forwards:
            parts, seeds = (
                [next(batches) for _ in lanes],
                [self.stream.lane_seed(step, lane) for lane in lanes],
            )
            with self.engine.lane(lanes is self.forwards[-1]):
                one = len(lanes) == 1
                out = (
                    self.task.loss(model, parts[0], seeds[0])
                    if one
                    else self.task.together(model, parts, seeds)
                )
                self.engine.backward(out["loss"] * len(lanes) / self.recipe.batch.lanes)
            for lane in lanes:
                self.statistics.add_lane(lane)
        self.statistics.finish_step()
        loss, norm = self.engine.step(self.lr(step))
        if self.ema is not None:
            self.ema.update(self.engine.whole())
        return loss, norm

    def _after_step(self) -> None:
        due = {name for name, when in self.due.items() if when(self.step)}
        if not due:
            return
        loss, norm = (
            self.meter.read()
        )  # also where only a save is due: what is not finite must not be saved
        if "log" in due and self.meter.steps:  # none where a left-out step stood alone
            if self.replaced.limit:
                self.replaced.merge(gather_object(sorted(self.replaced.errors)))
            self.log.progress(self._progress(loss, norm), self.recipe.batch.size)
            self.meter.reset()
        if "evaluate" in due:
            with self.clock.part("evaluate"):
                self.log.evaluation(self._position() | self._evaluate())
        if "save" in due:
            self._save()

    def _save_before_leaving(self) -> None:
        if not self.due["save"](self.step):
            self.meter.read()  # as before any save
            self._save()

    def _evaluate(self) -> dict[str, float]:
        folder = self.evaluations / f"step_{self.step:08d}"
        metrics = evaluate(self.task, self.engine.whole(), self.recipe, self.accelerator, folder)
        if self.ema is not None:
            average = evaluate(self.task, self.ema.module, self.recipe, self.accelerator)
            metrics |= {f"ema_{name}": value for name, value in average.items()}
        return metrics

    def _position(self) -> dict[str, float]:
        return {"step": self.step, "epoch": self.step / self.stream.steps_per_epoch}

    def _progress(self, loss: float, norm: float) -> dict[str, float]:
        replaced = {"replaced": len(self.replaced.errors)} if self.replaced.limit else {}
        progress = {"loss": loss, "lr": self.lr(self.step - 1), "grad_norm": norm}
        return self._position() | progress | self.pace.since_last(self.step) | replaced

    def _save(self) -> None:
        """Collect everything from all processes; process 0 writes it."""
        with self.clock.part("save"):
            scaler = self.accelerator.scaler
            weights = {"model": self.engine.whole().state_dict()}
            if self.ema is not None:
                weights["ema"] = self.ema.module.state_dict()
            state = {
                "optimizer": self.engine.optimizer_state(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            progress = {
                "clock": self.clock.now(),
                "best": self.log.best,
                "meter": self.meter.state(),
            }
            progress["replaced"] = sorted(self.replaced.errors)
            keep = self.recipe.save.keep
            on_main(
                self.accelerator,
                self.writer.save,
                self.checkpoints,
                self.step,
                weights,
                state,
                progress,
                keep,
            )

    def _start(self, path: Path | None) -> dict[str, Any]:
        """Make the engine, from a checkpoint where there is one. Returns its progress, or that of step 0."""
        if path is None:
            self.engine = prepare(self.accelerator, self.recipe, self.task.bare)
            return {"step": 0, "clock": None, "best": None, "meter": None}
        weights, state, progress = checkpoint.read(path)
        self.task.bare.load_state_dict(weights["model"])  # before an engine may cut it up
        if self.ema is not None:
            self.ema.module.load_state_dict(weights["ema"])
        self.engine = prepare(self.accelerator, self.recipe, self.task.bare)
        self.engine.load_optimizer(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return progress

    def _headline(self) -> str:
        """What runs where, in one line."""
        recipe, batch = self.recipe, self.recipe.batch
        parameters = sum(p.numel() for p in self.task.bare.parameters())
        trained = "" if recipe.model.train == "all" else f" (trained: {recipe.model.train})"
        tract = f"TrAct {recipe.model.tract}" if recipe.model.tract else "no TrAct"
        begin = f"from step {self.step}" if self.step else f"{self.stream.steps_per_epoch} an epoch"
        return (
            f"{recipe.name}: {recipe.model.name}, {parameters:,} parameters{trained}, {tract}; "
            f"{len(self.task.train_data):,} + {len(self.task.val_data):,} images; "
            f"{batch.lanes} lanes of {batch.lane_size} on {self.accelerator.num_processes} process(es), "
            f"{self.accelerator.device.type}, {recipe.precision.autocast or 'float32'}; {self.total:,} steps, {begin}"
        )


def _every(steps: int | None, total: int) -> Callable[[int], bool]:
    """Whether something is due after so many steps: at the end, and every `steps` where given."""
    return lambda done: done == total or (steps is not None and done % max(steps, 1) == 0)
