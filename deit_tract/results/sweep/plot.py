"""A set's picture: curves of each row, or the final score over the columns' values."""

from pathlib import Path
from typing import Any

from deit_tract.common.errors import UserError
from deit_tract.results.plot import COLORS, add_legend, save_figure
from deit_tract.results.runs import Points, mean_curve, read_runs
from deit_tract.results.statistics import spread
from deit_tract.results.sweep.definition import Sweep
from deit_tract.results.sweep.report import Report
from deit_tract.results.sweep.state import read_state

PER_LINE = 4  # panels


def plot(sweep: Sweep, report: Report, file: Path) -> None:
    """Draw a set's finished runs. Raises UserError if there are none or the file is impossible."""
    import matplotlib

    matplotlib.use("agg")
    if not any(cell.scores for cell in report.cells.values()):
        raise UserError(sweep.name, "no run has finished", "run the set first")
    draw = _curves if sweep.definition.plot == "curves" else _columns
    save_figure(draw(sweep, report), file)


def _curves(sweep: Sweep, report: Report) -> Any:
    """One panel per row: the score over epochs, the mean over seeds of each column."""
    from matplotlib import pyplot

    rows = [row for row in sweep.rows if any(_finished(sweep, row, name) for name in sweep.columns)]
    across = min(PER_LINE, len(rows))
    down = -(-len(rows) // across)
    size = (4.5 * across, 3.6 * down)
    figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    handles: dict[str, Any] = {}
    for axis, row in zip(axes.flat, rows, strict=False):
        for index, column in enumerate(sweep.columns):
            curves = _finished(sweep, row, column)
            if curves:
                color = COLORS[index % len(COLORS)]
                (line,) = axis.plot(*zip(*mean_curve(curves), strict=True), color=color)
                handles[column or sweep.name] = line
                _published_line(axis, report, row, column, color)
        axis.set(title=row, xlabel="epoch", ylabel=f"{report.metric} (%)")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(rows) :]:
        axis.set_axis_off()
    add_legend(figure, list(handles.values()), list(handles))
    return figure


def _published_line(axis: Any, report: Report, row: str, column: str, color: str) -> None:
    """A dotted line at the published final number, where there is one."""
    published = report.cells[row, column].published
    if published is not None:
        axis.axhline(published, color=color, linestyle=":", linewidth=1)


def _finished(sweep: Sweep, row: str, column: str) -> list[Points]:
    """The curves of a cell's finished runs."""
    members = [one for one in sweep.members if (one.row, one.column) == (row, column)]
    folders = [one.folder for one in members if read_state(one).kind == "finished"]
    return [run.score for run in read_runs(folders)] if folders else []


def _columns(sweep: Sweep, report: Report) -> Any:
    """One line per row: the final score, mean and standard deviation, over the columns' values."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4.4), layout="constrained")
    numbers = [_number(column) for column in sweep.columns]
    numeric = None not in numbers
    places = numbers if numeric else list(range(len(sweep.columns)))
    for index, row in enumerate(sweep.rows):
        points = [
            (place, spread(list(report.cells[row, column].scores.values())))
            for place, column in zip(places, sweep.columns, strict=True)
            if (row, column) in report.cells and report.cells[row, column].scores
        ]
        if points:
            color = COLORS[index % len(COLORS)]
            means = [over.mean for _, over in points]
            errors = [over.sd or 0.0 for _, over in points]
            where = [place for place, _ in points]
            axis.errorbar(where, means, errors, color=color, marker=".", capsize=3, label=row)
    if numeric and min(places) > 0 and max(places) > 20 * min(places):
        axis.set_xscale("log")
    if not numeric:
        axis.set_xticks(places, sweep.columns, rotation=30, ha="right")
    label = sweep.definition.columns
    axis.set(xlabel=label if isinstance(label, str) else "", ylabel=f"final {report.metric} (%)")
    axis.grid(alpha=0.3)
    add_legend(figure, *axis.get_legend_handles_labels())
    return figure


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
