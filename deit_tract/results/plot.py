"""Curves of runs as a picture: top-1 over the published curves, and the training loss."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from deit_tract.common.colors import OKABE_ITO
from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, nearest
from deit_tract.recipe import published
from deit_tract.results.runs import Group, Points, RunRecord, at, mean_curve

COLORS = [OKABE_ITO[place] for place in (4, 5, 2, 6, 0, 1)]  # yellow is hard to see as a line
DASHES = ("--", ":", "-.")


def plot(
    groups: list[Group], entries: dict[str, list[Group]], file: Path, panels: Sequence[str] = ()
) -> None:
    """Draw scores, their difference to the published curves if there are any, and losses.

    entries: the groups that are compared with each published key. panels: further keys of
    metrics.jsonl to draw.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = [entry for entry in map(published.find, entries) if entry.epochs]
    titles = [f"{groups[0].title} (%)", "training loss", *panels]
    if curves:
        titles.insert(1, "top-1 minus published (points)")
    drawn = ["loss", *panels]
    colors = colors_for(len(groups))
    size = (5.5 * len(titles), 4.6)
    figure, axes = pyplot.subplots(1, len(titles), figsize=size, layout="constrained")
    for group, color in zip(groups, colors, strict=True):
        draw(axes[0], group, [run.score for run in group.runs], color)
        for axis, key in zip(axes[-len(drawn) :], drawn, strict=True):
            draw(axis, group, [run.curve(key) for run in group.runs], color)
        for entry in curves:
            if group in entries[entry.key]:
                draw(axes[1], group, [difference(entry, run.score) for run in group.runs], color)
    for index, entry in enumerate(curves):
        draw_published(axes, entry, DASHES[index % len(DASHES)])
    runs = [run for group in groups for run in group.runs]
    last = max((record["epoch"] for run in runs for record in run.metrics), default=0)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="epoch", ylabel=title, xlim=(0, 1.02 * last or 1))
        axis.grid(alpha=0.3)
    legends = [axis.get_legend_handles_labels() for axis in axes]
    add_legend(figure, *max(legends, key=lambda legend: len(legend[1])))
    save_figure(figure, file)


def save_figure(figure: Any, file: Path) -> None:
    """Write a picture. Raises UserError if the file's name or folder is impossible."""
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        instead = "name a .png file in a folder that exists"
        raise UserError(file, f"cannot be written ({error})", instead) from None


def check_panels(panels: Sequence[str], runs: Sequence[RunRecord]) -> None:
    """Raise UserError if no run has logged a panel's numbers."""
    pairs = [pair for run in runs for record in run.metrics for pair in record.items()]
    known = {key for key, value in pairs if isinstance(value, int | float)}
    numbers = sorted(known - {"step", "epoch"})
    for panel in panels:
        if panel not in numbers:
            instead = nearest(panel, numbers) or f"they have {listed(numbers, 20)}"
            raise UserError("--panels", f"no run has logged '{panel}'", instead)


def colors_for(count: int) -> list[str]:
    """Return as many different colours: Okabe and Ito's, or of more of them a rainbow's."""
    if count <= len(COLORS):
        return COLORS[:count]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"]((place + 0.5) / count)) for place in range(count)]


def draw(axis: Any, group: Group, curves: list[Points], color: str) -> None:
    """Draw the mean of a group's curves as a line, and each of several as a thin one."""
    average = smooth(mean_curve(curves))
    if not average:
        return
    name = group.name.replace("$", r"\$").lstrip("_")  # neither mathematics nor a hidden label
    label = name if len(curves) == 1 else f"{name}: mean of {len(curves)}"
    marker = "." if len(average) < 40 else None
    axis.plot(*zip(*average, strict=True), color=color, label=label, marker=marker)
    if len(curves) > 1:
        for points in map(smooth, curves):
            axis.plot(*zip(*points, strict=True), color=color, linewidth=0.7, alpha=0.4)


def draw_published(axes: Any, entry: published.Published, dash: str) -> None:
    style = {"color": "black", "linestyle": dash, "linewidth": 1.2}
    axes[0].plot(entry.epochs, entry.top1, label=f"published: {entry.key}", **style)
    axes[1].axhline(0, color="black", linewidth=0.8)


def add_legend(figure: Any, handles: list, names: list[str]) -> None:
    """Add a legend with as many columns as a line of about 150 letters has room for."""
    room = 150 // (6 + max(map(len, names), default=0))
    columns = max(1, min(len(names), room))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)


def difference(entry: published.Published, points: Points) -> Points:
    """Return a run's top-1 minus the published at each label, in points."""
    found = []
    for label, top1 in zip(entry.epochs, entry.top1, strict=True):
        value = at(points, label, entry.tolerance)
        if value is not None:
            found.append((label, value[0] - top1))
    return found


def smooth(points: Points, most: int = 1000) -> Points:
    """Return a long curve as at most `most` means of neighbours, and a short one as it is."""
    size = max(-(-len(points) // most), 1)
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (fmean(epoch for epoch, _ in block), fmean(top for _, top in block)) for block in blocks
    ]
