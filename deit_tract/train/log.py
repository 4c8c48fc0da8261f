"""What process 0 reports of a run: metrics.jsonl, summary.json, log lines, trackers."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator

from deit_tract.common.files import disk_errors, write_atomic
from deit_tract.recipe import published
from deit_tract.recipe.settings.recipe import HEADLINES, Recipe
from deit_tract.train.clock import Clock
from deit_tract.train.records import read_metrics
from deit_tract.train.screen import Screen
from deit_tract.train.trackers import TRACKERS


class RunLog:
    """metrics.jsonl, summary.json, the screen and trackers of one run."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        recipe: Recipe,
        start: int,
        total: int,
        best: dict | None,
    ):
        """Resume at step `start` of `total`, `best` being the best evaluation before.

        Raises UserError if nothing is published under the recipe's key.
        """
        self.folder = folder
        self.headline = HEADLINES[recipe.task]
        self.total = total
        self.best = best
        key = recipe.expect.published
        self.published = published.find(key) if key else None
        self.final: dict | None = None
        self.main = accelerator.is_main_process
        self.screen = Screen(self.main, start, total, recipe.batch.size)
        if self.main:
            self._cut(start)
        kinds = [TRACKERS[name] for name in recipe.log.trackers] if self.main else []
        self.trackers = [kind(recipe, folder, start) for kind in kinds]

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _cut(self, start: int) -> None:
        """Drop what a killed run wrote after the checkpoint that this one resumes from."""
        broken: list[str] = []
        records = read_metrics(self.folder, broken.append)
        kept = [record for record in records if record["step"] <= start]
        if broken:
            copy = shutil.copy(self._metrics, f"{self._metrics}.broken")
            self.screen.say(f"{broken[0]}; {copy} is a copy of the file")
        write_atomic(self._metrics, "".join(json.dumps(record) + "\n" for record in kept))
        evaluations = [record for record in kept if self.headline.metric in record]
        self.final = evaluations[-1] if evaluations else None
        self._evaluated = any(record["step"] == start and "lr" not in record for record in kept)
        for record in evaluations:  # that of the checkpoint's step came after the checkpoint
            self.best = record if self.is_best(record) else self.best

    def left_off(self) -> tuple[bool, dict | None]:
        """Whether the step that the run resumes at has been evaluated, and the best evaluation."""
        return self._evaluated, self.best

    def is_best(self, values: dict) -> bool:
        """Whether an evaluation is better than all before."""
        metric = self.headline.metric
        if metric not in values:  # of another evaluator, which may be due more often
            return False
        return self.best is None or self.headline.is_better(values[metric], self.best[metric])

    def record(self, values: dict) -> None:
        """Write one line of metrics.jsonl, and its numbers to the trackers."""
        if not self.main:
            return
        with disk_errors(self._metrics, "free some space and run the same command again"):
            with open(self._metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        for tracker in self.trackers:
            tracker.log(_numbers(values), values["step"])

    def progress(self, values: dict) -> None:
        """The line a person watches: loss, images/s, lr, epoch, wait for data, time left."""
        if not self.main:
            return
        self.record(values)
        parts = [
            f"loss {values['loss']:.4f}",
            f"{values['images_per_s']:.0f} img/s",
            f"lr {values['lr']:.2e}",
            f"epoch {values['epoch']:.2f}",
            *self._standing(self.final),
            f"wait {100 * values['data_wait']:.0f}%",
        ]
        if values.get("mfu") is not None:
            parts.append(f"MFU {100 * values['mfu']:.0f}%")
        if "memory_gib" in values:
            parts.append(f"{values['memory_gib']:.1f} GiB")
        self.screen.progress(values["step"], parts, values["images_per_s"])

    def evaluation(self, values: dict) -> None:
        """The metrics of an evaluation. The best by the headline metric is kept for the summary."""
        near = self._near(values)
        if near is not None:
            values = values | {"published_top1": near[1]}
        if self.headline.metric in values:
            self.final = values
        if self.is_best(values):
            self.best = values
        self.record(values)
        standing = self._standing(values)
        hidden = {"step", "epoch"} | ({"top1", "published_top1"} if standing else set())
        numbers = _numbers(values).items()
        shown = [*standing, *(f"{key} {value:.3f}" for key, value in numbers if key not in hidden)]
        self.screen.say(f"step {values['step']}/{self.total}: {', '.join(shown)}")

    def _near(self, values: dict | None) -> tuple[float, float] | None:
        """The published label nearest to an evaluation and its top-1; None if there is none."""
        if self.published is None or values is None or "top1" not in values:
            return None
        return self.published.near(values["epoch"])

    def _standing(self, values: dict | None) -> list[str]:
        """`top1 62.90 (published 63.12 at epoch 100, -0.22)`; empty if nothing is published."""
        near = self._near(values)
        if near is None:
            return []
        epoch, published_top1 = near
        top1 = values["top1"]
        theirs = f"published {published_top1:.2f} at epoch {epoch:g}"
        return [f"top1 {top1:.2f} ({theirs}, {top1 - published_top1:+.2f})"]

    def close(self, step: int, clock: Clock, exit: str) -> dict:
        """Write summary.json: the last and the best evaluation, steps, seconds, how it ended."""
        seconds = clock.now()
        summary = {
            "final": self.final,
            "best": self.best,
            "steps": step,
            "exit": exit,
            "seconds": round(sum(seconds.values()), 3),
            "seconds_by_part": seconds,
        }
        if self.main:
            self.screen.close()
            for tracker in self.trackers:
                tracker.close(failed=exit not in ("finished", "preempted"))
            write_atomic(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary


def _numbers(values: dict) -> dict[str, float]:
    """Only the numbers; a detector's average precision by class is a dictionary."""
    return {key: value for key, value in values.items() if isinstance(value, int | float)}
