"""The training loop. Accelerate launches, wraps, casts, reduces; data and randomness are ours."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor

from deit_tract.common.errors import UserError
from deit_tract.data.feed import make_feed
from deit_tract.data.guards import class_names, of_validation
from deit_tract.data.loader import Batch, Replaced, worker_died
from deit_tract.data.sets.images import Splits
from deit_tract.data.sets.load import load_splits
from deit_tract.data.stream import Stream
from deit_tract.engine.batch_norm import RunningStatistics
from deit_tract.engine.launch import launch, prepare
from deit_tract.engine.processes import Stop, on_all, on_main
from deit_tract.evaluators import build_evaluators
from deit_tract.models.precision import resolve_precision
from deit_tract.models.weights import load_state
from deit_tract.plan.lanes import lanes_per_forward
from deit_tract.plan.probe import check_start
from deit_tract.recipe.launch import check_folder, lanes_of
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.schedule.durations import in_steps, total_steps
from deit_tract.schedule.learning_rate import learning_rate
from deit_tract.tasks import build_task
from deit_tract.train import checkpoint
from deit_tract.train.banner import start_lines
from deit_tract.train.clock import Clock
from deit_tract.train.evaluate import evaluate
from deit_tract.train.fill_in import fill_in
from deit_tract.train.folder import Lock, check_data, describe_run
from deit_tract.train.log import RunLog
from deit_tract.train.meter import Meter
from deit_tract.train.pace import Pace
from deit_tract.train.quiet import silence
from deit_tract.train.start import load_start_weights
from deit_tract.train.trace import Trace


def train(recipe: Recipe, folder: Path, weights: str | None = None, best: bool = False) -> dict:
    """Run a recipe in a folder, or resume the run that is there.

    weights: what to start from, if that is a run, its newest weights or its `best`.

    Returns the run's summary, whose "exit" is "finished", or "preempted" after a signal to any
    process. Raises UserError for every user mistake, for a loss that is not finite and for a
    process that does not answer.
    """
    silence()
    recipe = resolve_precision(recipe)
    accelerator = launch(recipe)
    lock = Lock(folder)
    on_main(accelerator, lock.take)
    try:
        with Stop(accelerator, recipe.faults.timeout) as stop:
            recipe = on_all(accelerator, fill_in, recipe, folder, weights)
            on_main(accelerator, check_folder, folder, recipe)
            on_main(accelerator, check_start, recipe)
            newest = on_main(accelerator, checkpoint.newest, folder / "checkpoints")
            data = on_all(accelerator, load_splits, recipe.data, recipe.detect)
            found = on_main(accelerator, check_data, folder, recipe, data, newest is not None)
            start = partial(load_start_weights, source=weights, best=best) if weights else None
            run = on_all(accelerator, Run, recipe, folder, accelerator, data, newest, start)
            on_main(accelerator, describe_run, folder, recipe, accelerator, found)
            summary = _watched(run, stop)
            accelerator.end_training()
    finally:
        lock.release()
    return summary


def _watched(run: "Run", stop: Stop) -> dict:
    """Train, and leave a summary of how it ended, whatever happens."""
    try:
        try:
            run.train(stop)
        # what a failed exchange between processes raises, among others
        except RuntimeError as error:
            known = worker_died(error) or stop.missing(run.step + 1)
            if known is None:
                raise
            raise known from error
    except BaseException as error:
        # a full disk, a loader: the first error is the one to show
        with suppress(UserError, RuntimeError):
            run.log.close(run.step, run.clock, f"stopped: {str(error) or type(error).__name__}")
        raise
    finally:
        run.writer.shutdown()
    return run.log.close(run.step, run.clock, "finished" if run.step == run.total else "preempted")


class Run:
    """One run on one process: model, optimizer, stream, and the number of steps it has taken."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        data: Splits,
        newest: Path | None,
        start: Callable[..., str] | None,
    ):
        """Resume from the checkpoint `newest`, or begin at step 0, with weights by `start`."""
        self.recipe = recipe
        self.folder = folder
        self.accelerator = accelerator
        self.task = build_task(recipe, data.train)
        self.evaluators = build_evaluators(recipe, data.val)
        batch = recipe.batch
        images = len(self.task.source.images)
        repeats = recipe.augment.repeats
        self.stream = Stream(images, batch.lanes, batch.lane_size, repeats, recipe.seed)
        self.lanes = lanes_of(accelerator.process_index, accelerator.num_processes, batch.lanes)
        self.forwards = self._forwards()
        self.total = total_steps(recipe.schedule, self.stream.steps_per_epoch)
        self.lr = learning_rate(recipe, self.stream.steps_per_epoch)
        self.due = self._due()
        self.origin = None
        if start is not None and newest is None:  # a resumed run has its own weights
            self.origin = start(self.task.model, recipe, classes=class_names(data.train))
        self.averages = self._averages()
        progress = self._start(newest)
        self.statistics = RunningStatistics(self.task.model, batch.lanes)
        self.writer = checkpoint.Writer(recipe.save.background)
        self._resume(progress)

    def _forwards(self) -> list[Sequence[int]]:
        """This process's lanes, grouped by the forward pass that they share."""
        size = lanes_per_forward(self.recipe, self.task.model, self.accelerator.device)
        return [self.lanes[first : first + size] for first in range(0, len(self.lanes), size)]

    def _due(self) -> dict[str, Callable[[int], bool]]:
        """Whether a log line, a checkpoint, or an evaluator by its name is due after some steps."""
        per_epoch = self.stream.steps_per_epoch
        every = {
            "log": self.recipe.log.every_steps,
            "save": in_steps(self.recipe.save, "every_", per_epoch),
        }
        for evaluator in self.evaluators:
            every[evaluator.name] = in_steps(evaluator.settings, "every_", per_epoch)
        due = {name: partial(_is_due, steps, self.total) for name, steps in every.items()}
        milestones = {round(epoch * per_epoch) for epoch in self.recipe.save.milestones}
        return due | {"milestone": milestones.__contains__}

    def _averages(self) -> dict[str, ModelEmaV3]:
        """The recipe's moving averages of the weights, by the name of their file."""
        decay = self.recipe.ema.decay
        if decay is None:
            return {}
        return {"ema": ModelEmaV3(self.task.model, decay=decay).to(self.accelerator.device)}

    def _start(self, path: Path | None) -> dict[str, Any]:
        """Make the engine, from a checkpoint if there is one; returns where the run is."""
        model = self.task.model
        if path is None:
            self.engine = prepare(self.accelerator, self.recipe, model)
            return {"step": 0, "clock": None, "best": None, "meter": None}
        weights, state, progress = checkpoint.read(path)
        load_state(model, weights["model"], str(path))  # before an engine may cut it up
        for name, average in self.averages.items():
            load_state(average.module, weights.get(name, {}), f"{path}: {name}")
        self.engine = prepare(self.accelerator, self.recipe, model)
        with checkpoint.fitting(path):
            self.engine.load_optimizer(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        return progress

    def _resume(self, progress: dict[str, Any]) -> None:
        """Set up step, clock, meter and log as a checkpoint left them."""
        recipe = self.recipe
        accelerator = self.accelerator
        device = accelerator.device
        self.step = progress["step"]
        self.replaced = Replaced(recipe.data.skip_unreadable, progress.get("replaced", ()))
        self.clock = Clock(progress["clock"])
        self.meter = Meter(accelerator, progress["meter"])
        self.pace = Pace(recipe, device, accelerator.num_processes, self.clock, self.step)
        best = progress["best"]
        self.log = RunLog(self.folder, accelerator, recipe, self.step, self.total, best)

    def train(self, stop: Stop) -> None:
        """Take every step that is left, or those up to where the processes agree to stop."""
        stop.take_interrupts()
        self.log.screen.begin(start_lines(self))
        profile = self.recipe.log.profile
        if profile and not self.step < profile <= self.total:
            what = f"step {profile} is not among those to come"
            self.log.screen.say(f"log.profile: {what}; no trace is written")
        self._catch_up()
        skip = {step - 1 for step in self.recipe.faults.skip_steps}
        steps = range(self.step, self.total)
        if skip:  # else no list, which would be long
            steps = [step for step in steps if step not in skip]
        workers = self.recipe.data.workers
        device = self.accelerator.device
        feed = make_feed(self.task.source, self.stream, self.lanes, workers, device, self.replaced)
        batches = self.clock.waiting(feed.batches(steps))
        self.engine.model.train()
        with Trace(profile, self.folder, self.accelerator.is_main_process) as trace:
            for step in range(self.step, self.total):
                trace.before(step + 1)
                if step not in skip:
                    self.meter.add(step + 1, *self.optimizer_step(step, batches))
                self.step = step + 1
                self.log.screen.step(self.step, self._last_loss)
                self._after_step()
                if stop.agreed():
                    self._save_before_leaving()
                    break
        on_main(self.accelerator, self.writer.wait)

    def optimizer_step(self, step: int, batches: Iterator[Batch]) -> tuple[dict, Tensor]:
        """The lanes' gradients, then the update. Returns this process's losses and the norm."""
        model = self.engine.model
        total = self.recipe.batch.lanes
        parts: dict[str, Tensor] = {}
        for lanes in self.forwards:
            lane_batches = [next(batches) for _ in lanes]
            seeds = [self.stream.lane_seed(step, lane) for lane in lanes]
            with self.engine.lane(lanes is self.forwards[-1]):
                losses = self.task.loss(model, lane_batches, seeds)
                self.engine.backward(losses.pop("loss") * len(lanes) / total)
            for name, value in losses.items():
                parts[name] = parts.get(name, 0.0) + value.detach() * len(lanes) / total
            for lane in lanes:
                self.statistics.add_lane(lane)
        self.statistics.finish_step()
        loss, norm = self.engine.step(self.lr(step))
        for average in self.averages.values():
            average.update(self.engine.full_model())
        return {"loss": loss} | parts, norm

    def _after_step(self) -> None:
        due = {name for name, is_due in self.due.items() if is_due(self.step)}
        if not due:
            return
        # also if only a save is due: what is not finite must not be saved
        losses, norm = self.meter.read()
        if "log" in due and self.meter.steps:  # no steps if the only one was skipped
            if self.replaced.limit:
                self.replaced.merge(gather_object(sorted(self.replaced.errors)))
            self.log.progress(self._progress(losses, norm))
            self.meter.reset()
        if "save" in due:  # first: an evaluation may end the run, by an image that cannot be read
            self._save()
        if "milestone" in due:
            self._save_weights(checkpoint.save_milestone)
        self._evaluate(due)

    def _save_before_leaving(self) -> None:
        """Save the step at which a signal stopped the run, unless that has just been done."""
        if not self.due["save"](self.step):
            self.meter.read()  # as before any save
            self._save()

    def _catch_up(self) -> None:
        """Evaluate what the run had saved, and not evaluated when it ended."""
        evaluated, self.log.best = on_main(self.accelerator, self.log.left_off)
        if self.step and not evaluated:
            self._evaluate({name for name, is_due in self.due.items() if is_due(self.step)})

    def _evaluate(self, due: set[str]) -> None:
        """Measure and record what is due; keep the weights if they are the best and are wanted."""
        if not any(evaluator.name in due for evaluator in self.evaluators):
            return
        with self.clock.part("evaluate"):
            found = self._position() | self._metrics(due)
        if self.recipe.save.best and self.log.is_best(found):
            self._save_weights(checkpoint.save_best, found)
        self.log.evaluation(found)

    def _save_weights(self, save: Callable, *more: Any) -> None:
        """Write the weights of this step by one of checkpoint.py's functions."""
        with self.clock.part("save"):
            folder = self.folder / checkpoint.FOLDER
            on_main(self.accelerator, save, folder, self.step, self._weights(), *more)

    def _metrics(self, due: set[str]) -> dict[str, Any]:
        """The metrics of the evaluators that are due, of the weights and of their averages."""
        models = {"": self.engine.full_model()}
        for name, average in self.averages.items():
            models[f"{name}_"] = average.module
        precision = self.recipe.precision.autocast
        folder = self.folder / "evaluations" / f"step_{self.step:08d}"
        metrics: dict[str, Any] = {}
        for evaluator in self.evaluators:
            if evaluator.name not in due:
                continue
            first = evaluator is self.evaluators[0]
            prefix = "" if first else f"{evaluator.name}_"
            place = folder if first else folder / evaluator.name
            for kind, model in models.items():
                shown = None if kind else place
                images = math.ceil(len(evaluator.source.images) / self.accelerator.num_processes)
                with self.log.screen.evaluating(images) as progress, of_validation():
                    found = evaluate(evaluator, model, self.accelerator, precision, shown, progress)
                metrics |= {prefix + kind + name: value for name, value in found.items()}
        return metrics

    def _last_loss(self) -> float | None:
        return self.meter.last(len(self.lanes) / self.recipe.batch.lanes)

    def _position(self) -> dict[str, float]:
        return {"step": self.step, "epoch": self.step / self.stream.steps_per_epoch}

    def _progress(self, losses: dict[str, float], norm: float) -> dict[str, float]:
        replaced = {"replaced": len(self.replaced.errors)} if self.replaced.limit else {}
        progress = losses | {"lr": self.lr(self.step - 1), "grad_norm": norm}
        return self._position() | progress | self.pace.since_last(self.step) | replaced

    def _save(self) -> None:
        """Collect everything from all processes; process 0 writes it."""
        with self.clock.part("save"):
            weights = self._weights()
            scaler = self.accelerator.scaler
            state = {
                "optimizer": self.engine.optimizer_state(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            progress = {
                "clock": self.clock.now(),
                "best": self.log.best,
                "meter": self.meter.state(),
                "replaced": sorted(self.replaced.errors),
            }
            folder = self.folder / "checkpoints"
            save = partial(self.writer.save, folder, self.step, keep=self.recipe.save.keep)
            on_main(self.accelerator, save, weights, state, progress)

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """The weights and their averages, by the names of their files."""
        averages = {name: average.module.state_dict() for name, average in self.averages.items()}
        return {"model": self.engine.full_model().state_dict()} | averages


def _is_due(every: int | None, total: int, step: int) -> bool:
    """Whether something is due after `step` steps: at the end, and every `every` steps if given."""
    return step == total or (every is not None and step % max(every, 1) == 0)
