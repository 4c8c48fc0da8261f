"""PASCAL VOC's average precision, as the 2007 development kit defines it.

For each class the detections of all images are sorted by score. A detection takes the object of its
class and image that it overlaps most, taken or not, difficult or not. With an IoU of 0.5 or more it
is right if it is the object's first, wrong if it is a repeat, and not counted if the object is
difficult; with less it is wrong. Difficult objects are not counted as missed either. There is no
limit of detections per image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deit_tract.data.sets.boxes import Objects

IOU = 0.5
# as the reference has them: the fourth is 0.30000000000000004, above 3 of 10
RECALLS = np.arange(0.0, 1.1, 0.1)


class Detections(NamedTuple):
    """The detections on a set of images, one row each."""

    images: np.ndarray  # (n,) index of the image
    boxes: np.ndarray  # (n, 4) x0, y0, x1, y1 in pixels of the image, half-open
    labels: np.ndarray  # (n,) from 1
    scores: np.ndarray  # (n,)


class ClassPrecision(NamedTuple):
    """How well one class was found; nan if there is nothing to find."""

    ap07: float  # mean of the best precision at recall 0, 0.1, ..., 1 or more
    area: float  # below the monotone envelope of precision over recall
    objects: int  # without difficult ones
    detections: int


def average_precision(
    found: Detections, truth: Sequence[Objects], classes: int
) -> list[ClassPrecision]:
    """Each class's average precision, at most 1; `truth[i]` is what is on image i.

    Equal scores count in the order given.
    """
    order = np.argsort(-found.scores, kind="stable")
    found = Detections(*(column[order] for column in found))
    images = np.repeat(np.arange(len(truth)), [len(objects.labels) for objects in truth])
    boxes = np.concatenate([objects.boxes.numpy() for objects in truth] or [np.zeros((0, 4))])
    labels = np.concatenate([objects.labels.numpy() for objects in truth] or [np.zeros(0)])
    flags = [objects.difficult.numpy() for objects in truth] or [np.zeros(0, bool)]
    difficult = np.concatenate(flags)
    result = []
    for label in range(1, classes + 1):
        ours = found.labels == label
        theirs = labels == label
        count = int((theirs & ~difficult).sum())
        objects = (images[theirs], boxes[theirs], difficult[theirs])
        right, wrong = judge(found.images[ours], found.boxes[ours], *objects)
        result.append(ClassPrecision(*summary(right, wrong, count), count, int(ours.sum())))
    return result


def mean_over_classes(values: Sequence[float]) -> float:
    """The mean over the classes that have objects; nan if none has."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def judge(images, boxes, object_images, object_boxes, difficult) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of one class, best score first, are right and which wrong (n,), or neither.

    The objects stand in the order of their images.
    """
    iou, taken = overlap(images, boxes, object_images, object_boxes)
    hit = iou >= IOU
    counted = hit.copy()
    counted[hit] = ~difficult[taken[hit]]
    first = np.zeros(len(images), bool)
    places = np.flatnonzero(counted)
    first[places[np.unique(taken[places], return_index=True)[1]]] = True
    return first, ~hit | (counted & ~first)


def overlap(images, boxes, object_images, object_boxes) -> tuple[np.ndarray, np.ndarray]:
    """Each detection's largest IoU with an object of its image (0 without any), and its place."""
    begin = np.searchsorted(object_images, images, "left")
    count = np.searchsorted(object_images, images, "right") - begin
    best = np.zeros(len(images))
    taken = np.full(len(images), -1)
    some = np.flatnonzero(count)
    if not len(some):
        return best, taken
    # all pairs of a detection and an object of its image, one detection's after the other's
    starts = np.cumsum(count[some]) - count[some]
    detection = np.repeat(some, count[some])
    other = np.arange(len(detection)) + np.repeat(begin[some] - starts, count[some])
    a = boxes[detection].astype(np.float64)
    b = object_boxes[other].astype(np.float64)
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(min=0)
    shared = sides.prod(1)
    iou = shared / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared)
    best[some] = np.maximum.reduceat(iou, starts)
    equal = np.flatnonzero(iou == best[detection])
    # of objects with equal overlap the first
    owners, firsts = np.unique(detection[equal], return_index=True)
    taken[owners] = other[equal[firsts]]
    return best, taken


def summary(right: np.ndarray, wrong: np.ndarray, objects: int) -> tuple[float, float]:
    """Average precision by 11 points and by area, from the verdicts in order of score."""
    if objects == 0:
        return float("nan"), float("nan")
    hits = right.cumsum()
    judged = (right | wrong).cumsum()
    recall = hits / objects
    precision = hits / np.maximum(judged, 1)
    points = [precision[recall >= level].max(initial=0.0) for level in RECALLS]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float(np.mean(points)), float((steps * envelope).sum())
