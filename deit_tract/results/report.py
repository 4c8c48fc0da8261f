"""What an evaluation found, as text, tables and a picture."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.evaluators import measures

MOST_NAMES, MOST_NUMBERS = (
    50,
    20,
)  # classes up to which the confusion picture has their names, and counts in its cells


def bins(rows: list[dict[str, Any]]) -> str:
    """The table behind an expected calibration error."""
    lines = ["confidence    images   confidence    top-1   (%)"]
    for row in rows:
        means = "" if row["top1"] is None else f"{row['confidence']:13.2f}{row['top1']:9.2f}"
        lines.append(f"{100 * row['low']:5.1f} - {100 * row['high']:5.1f}{row['count']:7,}{means}")
    return "\n".join(lines)


def per_class(rows: list[dict[str, Any]], file: str) -> list[str]:
    """The lines of the table of `measures.per_class`, or, with a file, that it was written there."""
    if file:
        with (
            disk_errors(Path(file), "name another file"),
            open(file, "w", newline="", encoding="utf-8") as target,
        ):
            writer = csv.DictWriter(target, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return [f"wrote {file}"]
    width = max(len(row["name"]) for row in rows)
    lines = ["", f"{'class':<{width + 6}} images  top-1 %  top-5 %  predicted  most taken for"]
    for row in rows:
        right = (
            "        -        -" if row["top1"] is None else f"{row['top1']:9.2f}{row['top5']:9.2f}"
        )
        taken = f"  {row['taken_for']} ({row['times']})" if row["times"] else ""
        lines.append(
            f"{row['class']:>4}  {row['name']:<{width}}{row['count']:>7,}{right}{row['predicted']:>11,}{taken}"
        )
    return lines


def confused(names: list[str], confusion: list[list[int]], file: Path) -> list[str]:
    """Draws a confusion matrix; the lines of its most frequent mistakes. UserError where it cannot be written."""
    matrix = np.array(confusion)
    draw(names, matrix, file)
    lines = [f"wrote {file}; most frequent mistakes:"]
    for right, said, times in measures.confused(matrix, 5):
        lines.append(f"  {names[right]} taken for {names[said]}: {times} of {matrix[right].sum()}")
    return lines


def draw(names: list[str], matrix: np.ndarray, file: Path) -> None:
    """The confusion matrix as a picture, each row divided by its class's number of images."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    count = len(names)
    side = min(4 + 0.25 * count, 16)
    figure, axis = pyplot.subplots(figsize=(side + 1, side), layout="constrained")
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure.colorbar(
        axis.imshow(share, cmap="Blues", vmin=0, vmax=100),
        label="% of the class's images",
        shrink=0.8,
    )
    axis.set(xlabel="predicted class", ylabel="right class")
    if count <= MOST_NAMES:
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
    for row, column in np.argwhere(matrix) if count <= MOST_NUMBERS else ():
        color = "white" if share[row, column] > 50 else "black"
        axis.text(
            column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=8
        )
    try:
        figure.savefig(file, dpi=120, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise UserError(file, f"cannot be written ({error})", "name a .png file") from None
    finally:
        pyplot.close(figure)
