"""Runs read back from their folders: curves, groups over seeds, what one gains over another."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from deit_tract.common.errors import UserError
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.settings.recipe import HEADLINES
from deit_tract.results.experiments import changed_keys
from deit_tract.results.statistics import last, paired
from deit_tract.train.folder import is_locked
from deit_tract.train.records import Summary, check_ending, read_metrics, read_summary
from deit_tract.train.weights_source import recipe_of_run

Points = list[tuple[float, float]]  # (epoch, value), epochs rising


@dataclass(eq=False)
class RunRecord:
    """What one run wrote; `name` distinguishes it from those it is compared with."""

    name: str
    recipe: Recipe
    metrics: list[dict]
    summary: Summary
    # keys that make it another experiment than what its recipe expects
    changed: list[str] = field(default_factory=list)

    def curve(self, key: str) -> Points:
        """Return what was logged under a key, by epoch."""
        found = [(record["epoch"], record.get(key)) for record in self.metrics]
        return [(epoch, value) for epoch, value in found if value is not None]

    @cached_property
    def score(self) -> Points:
        """Return the task's headline metric, top-1 or mAP07, in percent at each evaluation."""
        return self.curve(self.recipe.headline)

    @property
    def finished(self) -> bool:
        return self.summary.exit == "finished" and bool(self.score)


@dataclass(eq=False)
class Group:
    """Runs of one recipe with different seeds."""

    runs: list[RunRecord]

    @property
    def recipe(self) -> Recipe:
        return self.runs[0].recipe

    @property
    def title(self) -> str:
        """Return what its score is called."""
        return HEADLINES[self.recipe.task].title

    @property
    def name(self) -> str:
        others = len(self.runs) - 1
        return self.runs[0].name + (f" +{others}" if others else "")

    @cached_property
    def by_seed(self) -> dict[int, RunRecord]:
        """Return the finished runs, the first of each seed, seeds rising."""
        first = {run.recipe.seed: run for run in reversed(self.runs) if run.finished}
        return dict(sorted(first.items()))

    @cached_property
    def final_by_seed(self) -> dict[int, float]:
        """Return the final top-1 or mAP07 (percent) of each finished seed."""
        return {seed: last(run.score) for seed, run in self.by_seed.items()}

    @property
    def finals(self) -> list[float]:
        return list(self.final_by_seed.values())

    @property
    def expected(self) -> float | None:
        """Return what the score should reach; None if unknown, or for a changed experiment."""
        return None if self.runs[0].changed else self.recipe.expected


def read_runs(folders: list[Path]) -> list[RunRecord]:
    """Read each folder's run, named by what distinguishes the folders.

    Raises UserError if a folder holds none.
    """
    paths = [folder.resolve() for folder in folders]
    above = os.path.commonpath([path.parent for path in paths])
    runs = []
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise UserError(folder, "is given twice", "name each run once")
        recipe = load_recipe(str(recipe_of_run(folder)))
        summary = read_summary(path) or Summary(exit="running or killed")
        metrics = read_metrics(path)
        check_ending(path, summary, metrics)
        summary = summary.model_copy(update={"exit": ending(path, summary, metrics)})
        changed = changed_keys(path / "recipe.yaml", recipe)
        runs.append(RunRecord(str(path.relative_to(above)), recipe, metrics, summary, changed))
    return runs


def ending(folder: Path, summary: Summary, metrics: list[dict]) -> str:
    """Return how a run has ended, or "running", "killed", or which of the two nothing tells."""
    told = summary.exit
    if told == "finished":
        return told
    locked = is_locked(folder)
    if locked:
        return "running"
    # it has resumed after what its summary tells
    beyond = metrics and summary.steps is not None and summary.steps < metrics[-1]["step"]
    if locked is False and (told == "running or killed" or beyond):
        return "killed"
    return told


def differing(one: Recipe, other: Recipe) -> set[str]:
    """Return the keys that decide the result and differ, except for the seed."""
    return {line.partition(":")[0] for line in differences(one, other)} - {"seed"}


def grouped(runs: list[RunRecord]) -> list[Group]:
    """Group the runs of one recipe, whatever their seeds, in the order they are given."""
    groups: list[Group] = []
    for run in runs:
        same = next((group for group in groups if not differing(group.recipe, run.recipe)), None)
        if same is None:
            groups.append(Group([run]))
        else:
            same.runs.append(run)
    return groups


def gains(base: Group, other: Group) -> dict[int, float]:
    """Return the final top-1 or mAP07 of `other` minus that of `base`, in points, by seed.

    Only for the seeds that both have finished.
    """
    return paired(base.final_by_seed, other.final_by_seed)


def gains_by_epoch(base: Group, other: Group) -> dict[float, dict[int, float]]:
    """Return the score of `other` minus that of `base`, in points, by epoch and seed.

    Only for the evaluations that all of them have.
    """
    seeds = gains(base, other)
    plain = {seed: dict(base.by_seed[seed].score) for seed in seeds}
    ours = {seed: dict(other.by_seed[seed].score) for seed in seeds}
    curves = [set(curve) for curve in (*plain.values(), *ours.values())]
    common = sorted(set.intersection(*curves)) if curves else []
    return {
        epoch: {seed: ours[seed][epoch] - plain[seed][epoch] for seed in seeds} for epoch in common
    }


def epochs_saved(base: Group, other: Group) -> dict[int, float | None]:
    """Return how many epochs before its end `other` reaches the final score of `base`, by seed.

    None if it never does.
    """
    saved = {}
    for seed in gains(base, other):
        final, target = base.by_seed[seed].score[-1]
        epoch = reached(other.by_seed[seed].score, target)
        saved[seed] = None if epoch is None else final - epoch
    return saved


def mean_curve(curves: list[Points]) -> Points:
    """Return the mean of one or more curves at the epochs that all of them have."""
    tables = [dict(points) for points in curves]
    common = [epoch for epoch, _ in curves[0] if all(epoch in values for values in tables)]
    return [(epoch, fmean(values[epoch] for values in tables)) for epoch in common]


def reached(points: Points, target: float) -> float | None:
    """Return the epoch at which a curve, straight between its points, first reaches `target`."""
    if points and points[0][1] >= target:
        return points[0][0]
    for (left, low), (right, high) in pairwise(points):
        if high >= target:  # low < target, or it would have been reached before
            return left + (right - left) * (target - low) / (high - low)
    return None


def at(points: Points, epoch: float, tolerance: float) -> tuple[float, str] | None:
    """Return a curve's value at an epoch, and where it comes from.

    From the point at that epoch (""), or the straight line between the points before and after
    ("~"). Before the first and after the last point, from that one if it is within the tolerance
    ("@7" if it is of epoch 7), else None.
    """
    for (left, low), (right, high) in pairwise(points):
        if left < epoch < right:
            return low + (high - low) * (epoch - left) / (right - left), "~"
    near = min(points, key=lambda point: abs(point[0] - epoch), default=None)
    if near is None or abs(near[0] - epoch) > tolerance:
        return None
    return near[1], "" if near[0] == epoch else f"@{near[0]:.4g}"
