"""Measures of single predictions: per class, other labels, calibration, confusion. Only NumPy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Samples(NamedTuple):
    """A model's predictions of n samples, in the data set's order."""

    labels: np.ndarray  # (n,) the right classes
    best: np.ndarray  # (n, 5) the classes with the largest logits, largest first; of fewer all
    confidence: np.ndarray  # (n,) softmax probability of the first of them


def per_class(samples: Samples, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class: samples, accuracies in percent, predictions of it, most frequent mistake.

    `names` are those of all classes; the accuracies of a class without samples are None.
    """
    right = samples.best == samples.labels[:, None]
    matrix = confusion(samples, len(names))
    wrong = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
    rows = []
    for label, name in enumerate(names):
        mine = right[samples.labels == label]
        taken = int(wrong[label].argmax())
        rows.append(
            {
                "class": label,
                "name": name,
                "count": len(mine),
                "top1": 100 * int(mine[:, 0].sum()) / len(mine) if len(mine) else None,
                "top5": 100 * int(mine.any(1).sum()) / len(mine) if len(mine) else None,
                "predicted": int(matrix[:, label].sum()),
                "taken_for": names[taken] if wrong[label, taken] else None,
                "times": int(wrong[label, taken]),
            }
        )
    return rows


def confusion(samples: Samples, classes: int) -> np.ndarray:
    """(classes, classes): how often samples of the row's class are predicted as the column's."""
    cells = samples.labels * classes + samples.best[:, 0]
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def confused(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of a confusion matrix: (right class, predicted class, times)."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    mistakes = [(int(right), int(taken), int(wrong[right, taken])) for right, taken in pairs]
    return [mistake for mistake in mistakes if mistake[2]]


class Bin(NamedTuple):
    """Samples whose confidence is above `low` and at most `high`."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean, percent; None without samples
    top1: float | None  # percent


def calibration(samples: Samples, bins: int = 15) -> tuple[float, list[Bin]]:
    """Expected calibration error in percent (Guo et al. 2017, equation 3), and its equal bins."""
    right = samples.best[:, 0] == samples.labels
    upper = np.ceil(samples.confidence.astype(np.float64) * bins).astype(int)
    place = np.clip(upper - 1, 0, bins - 1)
    rows = []
    error = 0.0
    for number in range(bins):
        mine = place == number
        count = int(mine.sum())
        confidence = top1 = None
        if count:
            confidence = 100 * float(samples.confidence[mine].mean(dtype=np.float64))
            top1 = 100 * int(right[mine].sum()) / count
            error += count * abs(top1 - confidence) / len(right)
        rows.append(Bin(number / bins, (number + 1) / bins, count, confidence, top1))
    return error, rows


def any_of(samples: Samples, answers: Sequence[Sequence[int]]) -> dict[str, float]:
    """Top-1 and top-5 in percent if any of a sample's answers counts; those without are left out.

    The protocol of ImageNet's reassessed labels (Beyer et al. 2020, arXiv 2006.07159).
    """
    pairs = zip(samples.best, answers, strict=True)
    kept = [(best.tolist(), set(right)) for best, right in pairs if right]
    count = len(kept)
    top1 = sum(best[0] in right for best, right in kept)
    top5 = sum(not right.isdisjoint(best) for best, right in kept)
    return {
        "real_top1": 100 * top1 / count if count else float("nan"),
        "real_top5": 100 * top5 / count if count else float("nan"),
        "real_count": count,
    }
