"""Image files and their labels as a CSV lists them."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, nearest, plural
from deit_tract.data.sets.images import Files

COLUMNS = {  # what a column may be called
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "split": ("split",),
}
HEADER = "begin it with the line path,label (or path,label,split)"


class Row(NamedTuple):
    path: str
    label: str
    split: str  # empty without such a column
    line: int


def read_rows(file: Path) -> list[Row]:
    """Read a CSV with a header. Raises UserError with the line of the first mistake."""
    try:
        # utf-8-sig: spreadsheets begin a file with a byte order mark
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = list(_rows(file, lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(file, f"cannot be read as CSV ({error})", "save it as UTF-8") from None
    if not rows:
        raise UserError(file, "lists no images", "add a line for each image")
    return rows


def _rows(file: Path, lines) -> Iterator[Row]:
    first = lines.readline()
    delimiter = max(",;\t", key=first.count)
    header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
    columns = {}
    for column, names in COLUMNS.items():
        columns[column] = next((header.index(name) for name in names if name in header), None)
    for column in ("path", "label"):
        if columns[column] is None:
            raise UserError(f"{file}:1", f"no column '{column}' in the header", HEADER)
    reader = csv.reader(lines, delimiter=delimiter)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        line = reader.line_num + 1
        row = {}
        for column, place in columns.items():
            row[column] = cells[place].strip() if place is not None and place < len(cells) else ""
            if place is not None and not row[column]:
                raise UserError(f"{file}:{line}", f"no {column}", "fill it in, or drop the line")
        yield Row(os.path.normpath(row["path"]), row["label"], row["split"].lower(), line)


def check_once(rows: list[tuple[Path, Row]]) -> None:
    """Raise UserError if an image is listed twice, in one file or in two."""
    seen: dict[str, str] = {}
    for file, row in rows:
        place = f"{file}:{row.line}"
        other = seen.setdefault(row.path, place)
        if other != place:
            raise UserError(place, f"'{row.path}' is listed in {other} too", "remove one of them")


def check_labels(file: Path, rows: list[Row], classes: list[str]) -> None:
    """Raise UserError if a row's label is not one of the classes, or if a class has no row."""
    known = set(classes)
    for row in rows:
        if row.label not in known:
            what = f"'{row.label}' is not a label of the training images"
            raise UserError(f"{file}:{row.line}", what, nearest(row.label, classes))
    counts = Counter(row.label for row in rows)
    empty = [name for name in classes if not counts[name]]
    if empty:
        what = f"no validation image of {plural(len(empty), 'class', 'classes')}: {listed(empty)}"
        raise UserError(file, what, "list some, or remove the class")


def to_images(file: Path, rows: list[Row], classes: list[str], mode: str) -> Files:
    """Make images of rows, ordered by class and path as class folders are.

    Paths are taken from the CSV's folder. Raises UserError if a file is not there.
    """
    root = file.parent
    missing = [row for row in rows if not os.path.isfile(os.path.join(root, row.path))]
    if missing:
        where = f"{file}:{missing[0].line}"
        what = f"{plural(len(missing), 'file')} not there: {listed([row.path for row in missing])}"
        raise UserError(where, what, f"paths are taken from {root}")
    number = {name: label for label, name in enumerate(classes)}
    ordered = sorted(rows, key=lambda row: (number[row.label], os.path.split(row.path)))
    labels = np.array([number[row.label] for row in ordered], np.int32)
    return Files(root, (row.path for row in ordered), labels, classes, mode)
