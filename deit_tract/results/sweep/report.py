"""A set's table: ours beside the published numbers, and what one column gains over another.

Only finished runs count, each with its last evaluation, never with its best.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from deit_tract.common.errors import UserError
from deit_tract.common.text import plural, table
from deit_tract.recipe import catalogue, published
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results.statistics import better, paired, spread
from deit_tract.results.sweep.definition import Member, Sweep
from deit_tract.train.records import read_summary

Scores = dict[int, float]  # percent (top-1, mAP) by seed


@dataclass
class Cell:
    """The runs of one row and column."""

    seeds: int  # how many the set has
    scores: Scores
    seconds: Scores  # of training, by seed
    published: float | None
    published_sd: float | None = None

    @property
    def complete(self) -> bool:
        return len(self.scores) == self.seeds

    @property
    def text(self) -> str:
        """Return `76.13 ± 0.27 (5)`, with `(3 of 5)` if seeds are missing."""
        if not self.scores:
            return "-"
        over = spread(list(self.scores.values()))
        sd = "" if over.sd is None else f" ± {over.sd:.2f}"
        missing = "" if self.complete else f" of {self.seeds}"
        return f"{over.mean:.2f}{sd} ({len(self.scores)}{missing})"


@dataclass
class Report:
    """The cells of one metric."""

    sweep: Sweep
    metric: str
    cells: dict[tuple[str, str], Cell]

    @property
    def others(self) -> list[str]:
        """Return the columns that are compared with `against`."""
        against = self.sweep.definition.against
        return [] if against is None else [name for name in self.sweep.columns if name != against]

    def gains(self, row: str, column: str) -> list[float]:
        """Return a row's gains over `against`, in points, for the seeds that both have."""
        base = self.cells.get((row, self.sweep.definition.against))
        other = self.cells.get((row, column))
        if base is None or other is None:
            return []
        return list(paired(base.scores, other.scores).values())

    def published_gain(self, row: str, column: str) -> float | None:
        base = self.cells.get((row, self.sweep.definition.against))
        other = self.cells.get((row, column))
        known = base and other and base.published is not None and other.published is not None
        return other.published - base.published if known else None

    def complete_rows(self, column: str) -> list[str]:
        """Return the rows whose runs have all finished, in a column and in `against`."""
        pairs = {
            row: (self.cells.get((row, name)) for name in (column, self.sweep.definition.against))
            for row in self.sweep.rows
        }
        return [row for row, pair in pairs.items() if all(cell and cell.complete for cell in pair)]

    def table(self) -> list[list[str]]:
        """Return the table's header and rows, the last one being the mean over complete rows.

        Columns of published numbers are left out where nothing is published.
        """
        names = [text for name in self.sweep.columns for text in (name, "published")]
        gains = [text for name in self.others for text in (f"gain of {name}", "published gain")]
        lines = [[self.metric, *names, *gains], *(self._row(row) for row in self.sweep.rows)]
        if len(self.sweep.rows) > 1 and self.others:
            lines.append(self._mean_row())
        columns = list(zip(*lines, strict=True))
        kept = [one for one in columns if "published" not in one[0] or set(one[1:]) != {"-"}]
        return [list(line) for line in zip(*kept, strict=True)]

    def _row(self, row: str) -> list[str]:
        cells = [row or self.sweep.name]
        for column in self.sweep.columns:
            cell = self.cells.get((row, column))
            cells += ["-", "-"] if cell is None else [cell.text, _percent(cell.published)]
        for column in self.others:
            cells += [gain_text(self.gains(row, column)), _signed(self.published_gain(row, column))]
        return cells

    def _mean_row(self) -> list[str]:
        """Return the means over the rows that are complete in every column."""
        every = set.intersection(*(set(self.complete_rows(column)) for column in self.others))
        used = [row for row in self.sweep.rows if row in every]
        cells = [f"mean of {len(used)} complete"]
        for column in self.sweep.columns:
            means = [fmean(self.cells[row, column].scores.values()) for row in used]
            known = [self.cells[row, column].published for row in used]
            cells += [_percent(_mean(means)), _percent(_mean(known))]
        for column in self.others:
            ours = [fmean(self.gains(row, column)) for row in used]
            theirs = [self.published_gain(row, column) for row in used]
            cells += [_signed(_mean(ours)), _signed(_mean(theirs))]
        return cells

    def sentences(self) -> list[str]:
        """Return what each column gains over the rows, ours and published."""
        against = self.sweep.definition.against
        lines = []
        for column in self.others:
            rows = self.complete_rows(column)
            lines.append(f"{self.metric}, {column} over {against}:")
            ours = [fmean(self.gains(row, column)) for row in rows]
            lines.append(f"- ours: {statistics_text(ours)}")
            theirs = [self.published_gain(row, column) for row in self.sweep.rows]
            known = [gain for gain in theirs if gain is not None]
            if known:
                lines.append(f"- published: {statistics_text(known)}")
        return lines

    def seconds(self) -> list[str]:
        """Return how long each column trains relative to `against`, paired by row and seed."""
        lines = []
        for column in self.others:
            ratios = []
            for row in self.sweep.rows:
                base = self.cells.get((row, self.sweep.definition.against))
                other = self.cells.get((row, column))
                if base and other:
                    common = base.seconds.keys() & other.seconds.keys()
                    ratios += [other.seconds[seed] / base.seconds[seed] for seed in sorted(common)]
            if ratios:
                over = spread(ratios)
                sd = "" if over.sd is None else f", sd {over.sd:.3f}"
                against = self.sweep.definition.against
                pairs = plural(len(ratios), "pair")
                lines.append(
                    f"training time, {column} to {against}: x {over.mean:.3f} ({pairs}{sd})"
                )
        return lines


def make_report(sweep: Sweep, metric: str) -> Report:
    """Read the finished runs of a set."""
    cells: dict[tuple[str, str], Cell] = {}
    for member in sweep.members:
        if not member.shown:
            continue
        place = (member.row, member.column)
        if place not in cells:
            cells[place] = Cell(0, {}, {}, *_published(member, metric))
        cell = cells[place]
        cell.seeds += 1
        summary = read_summary(member.folder)
        if summary is None or summary.exit != "finished" or metric not in (summary.final or {}):
            continue
        if member.seed in cell.scores:
            what = f"row '{member.row}' has two runs of column '{member.column}' and one seed"
            raise UserError(sweep.name, what, "give rows and columns that tell them apart")
        cell.scores[member.seed] = summary.final[metric]
        if summary.seconds is not None:
            cell.seconds[member.seed] = summary.seconds
    return Report(sweep, metric, cells)


def _published(member: Member, metric: str) -> tuple[float | None, float | None]:
    """Return the number that is published for a run's experiment, and its standard deviation."""
    key = _published_key(member.given, member.overrides[:-1], member.recipe.expect.published)
    result = published.find_result(key) if key else {}
    return result.get(metric), result.get(f"{metric}_sd")


@cache
def _published_key(given: str, varied: tuple[str, ...], own: str | None) -> str | None:
    """Return the recipe's own key; of varied values, that of the recipe with just these values.

    It is looked for among those of the family that differ in one option.
    """
    if not varied:
        return own
    recipe = load_recipe(given, varied)
    for name in [given, *_siblings(given)]:
        other = load_recipe(name)
        if not differences(other, recipe):
            return other.expect.published
    return None


def _siblings(name: str) -> list[str]:
    """Return the members of a recipe's family that differ in one part of their names."""
    entry = catalogue.names().get(name)
    if entry is None or entry.family is None:
        return []
    family = entry.family
    named = [axis for axis in family.axes if f"{{{axis}}}" in family.pattern.value]
    own = family.members[name]
    return [
        other
        for other, choice in family.members.items()
        if sum(choice[axis] != own[axis] for axis in named) == 1
    ]


def report_text(reports: list[Report]) -> str:
    """Return the tables of all metrics in Markdown, with what they say in sentences."""
    parts = []
    for report in reports:
        header, *rows = report.table()
        parts.append(table(header, rows, right=header[1:]))
        parts.append("\n".join(report.sentences()))
    first = reports[0]
    parts.append("\n".join(first.seconds()))
    notes = [
        "mean ± standard deviation (seeds), percent, of the last evaluation of finished runs;",
        "gains in points, paired by seed, with a 95 % t interval.",
    ]
    return "\n\n".join(part for part in [*parts, "\n".join(notes)] if part)


def statistics_text(gains: list[float]) -> str:
    """Return what some rows gain, on one line."""
    if not gains:
        return "no row is complete"
    over = spread(gains)
    text = f"{over.mean:+z.3f} points over {plural(over.n, 'row')}, {better(gains)}"
    if over.t is None:
        return text
    interval = f"95 % t interval {over.low:+z.3f} to {over.high:+z.3f}"
    return f"{text} ({interval}, t = {over.t:.2f}, p = {over.p:.1g})"


def gain_text(gains: list[float]) -> str:
    """Return `+0.54 [+0.31, +0.77]`; without the interval for a single seed."""
    if not gains:
        return "-"
    over = spread(gains)
    interval = "" if over.low is None else f" [{over.low:+z.2f}, {over.high:+z.2f}]"
    return f"{over.mean:+z.2f}{interval}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return fmean(known) if known and None not in known else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+z.2f}"


# ---- files ---------------------------------------------------------------------------------------

CSV_COLUMNS = (
    "metric row column seeds n mean sd published published_sd gain low high published_gain"
)


def write_csv(reports: list[Report], file: Path) -> None:
    """Write one line per metric, row and column; numbers in full, empty if there is none."""
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS.split())
        for report in reports:
            for (row, column), cell in report.cells.items():
                writer.writerow([report.metric, row, column, *_numbers(report, row, column, cell)])


def _numbers(report: Report, row: str, column: str, cell: Cell) -> list[object]:
    over = spread(list(cell.scores.values())) if cell.scores else None
    gains = report.gains(row, column) if column in report.others else []
    gain = spread(gains) if gains else None
    score = [over.mean, over.sd] if over else [None, None]
    gained = [gain.mean, gain.low, gain.high] if gain else [None, None, None]
    theirs = report.published_gain(row, column) if column in report.others else None
    published_numbers = [cell.published, cell.published_sd]
    return [cell.seeds, len(cell.scores), *score, *published_numbers, *gained, theirs]


def latex(reports: list[Report]) -> str:
    """Return the tables as LaTeX tabulars with booktabs' rules."""
    parts = []
    for report in reports:
        header, *rows = report.table()
        lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule"]
        lines += [_latex_row(header), r"\midrule", *map(_latex_row, rows)]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _latex_row(cells: list[str]) -> str:
    escapes = {"±": r"$\pm$", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"}
    texts = ("".join(escapes.get(letter, letter) for letter in cell) for cell in cells)
    return " & ".join(texts) + r" \\"
