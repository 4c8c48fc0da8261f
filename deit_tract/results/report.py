"""What an evaluation found, as text, tables and a picture."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.evaluators import measures

# classes up to which the confusion picture has
MOST_NAMES = 50  # their names
MOST_NUMBERS = 20  # counts in its cells


def bins(rows: list[dict[str, Any]]) -> str:
    """The table behind an expected calibration error."""
    lines = ["confidence    images   confidence    top-1   (%)"]
    for row in rows:
        means = "" if row["top1"] is None else f"{row['confidence']:13.2f}{row['top1']:9.2f}"
        lines.append(f"{100 * row['low']:5.1f} - {100 * row['high']:5.1f}{row['count']:7,}{means}")
    return "\n".join(lines)


def write_csv(rows: list[dict[str, Any]], file: Path) -> None:
    """Rows of the same keys as a file. Raises UserError if it cannot be written."""
    with disk_errors(file, "name another file"):
        with open(file, "w", newline="", encoding="utf-8") as target:
            writer = csv.DictWriter(target, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def per_class(rows: list[dict[str, Any]], file: Path | None) -> list[str]:
    """The lines of the table of `measures.per_class`; with a file it is written there instead."""
    if file:
        write_csv(rows, file)
        return [f"wrote {file}"]
    width = max(len(row["name"]) for row in rows)
    lines = ["", f"{'class':<{width + 6}} images  top-1 %  top-5 %  predicted  most taken for"]
    for row in rows:
        right = f"{'-':>9}{'-':>9}"
        if row["top1"] is not None:
            right = f"{row['top1']:9.2f}{row['top5']:9.2f}"
        name = f"{row['class']:>4}  {row['name']:<{width}}"
        taken = f"  {row['taken_for']} ({row['times']})" if row["times"] else ""
        lines.append(f"{name}{row['count']:>7,}{right}{row['predicted']:>11,}{taken}")
    return lines


def confused(names: list[str], confusion: list[list[int]], file: Path) -> list[str]:
    """Draw a confusion matrix; returns lines with its most frequent mistakes.

    Raises UserError if the picture cannot be written.
    """
    matrix = np.array(confusion)
    draw(names, matrix, file)
    lines = [f"wrote {file}; most frequent mistakes:"]
    for right, predicted, times in measures.confused(matrix, 5):
        mistake = f"{names[right]} taken for {names[predicted]}"
        lines.append(f"  {mistake}: {times} of {matrix[right].sum()}")
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
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label="% of the class's images", shrink=0.8)
    axis.set(xlabel="predicted class", ylabel="right class")
    if count <= MOST_NAMES:
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
    for row, column in np.argwhere(matrix) if count <= MOST_NUMBERS else ():
        color = "white" if share[row, column] > 50 else "black"
        place = {"ha": "center", "va": "center", "fontsize": 8}
        axis.text(column, row, matrix[row, column], color=color, **place)
    try:
        figure.savefig(file, dpi=120, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise UserError(file, f"cannot be written ({error})", "name a .png file") from None
    finally:
        pyplot.close(figure)
