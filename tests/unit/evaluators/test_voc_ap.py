"""VOC's average precision: cases worked out by hand, and a second implementation on random sets."""

import time

import numpy as np
import pytest
import torch

from deit_tract.data.sets.boxes import Objects
from deit_tract.evaluators import average_precision

FAR = [500, 500, 510, 510]  # overlaps nothing


def objects(*rows) -> Objects:
    """(box, label, difficult) each."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    return Objects(boxes, labels, torch.tensor([row[2] for row in rows], dtype=torch.bool))


def detections(*rows) -> average_precision.Detections:
    """(image, box, label, score) each."""
    images, boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return average_precision.Detections(
        np.array(images, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(scores, np.float64),
    )


def box(number: int) -> list[int]:
    return [20 * number, 0, 20 * number + 10, 10]


def one_class(difficult: list[bool], found: list[int | None]) -> average_precision.ClassPrecision:
    """Objects beside each other on one image; what each detection hits, best score first, None for
    nothing.
    """
    truth = objects(*((box(number), 1, hard) for number, hard in enumerate(difficult)))
    rows = [
        (0, FAR if hit is None else box(hit), 1, 1 - 0.01 * rank) for rank, hit in enumerate(found)
    ]
    return average_precision.average_precision(detections(*rows), [truth], 1)[0]


@pytest.mark.parametrize(
    ("difficult", "found", "eleven", "area"),
    [
        ([False], [0], 1, 1),
        ([False], [0, None], 1, 1),
        ([False], [None, 0], 1 / 2, 1 / 2),
        ([False] * 2, [0], 6 / 11, 1 / 2),
        ([False] * 2, [0, None, 1], (6 + 5 * 2 / 3) / 11, 5 / 6),
        ([False] * 2, [0, 0, 1], (6 + 5 * 2 / 3) / 11, 5 / 6),  # a repeat is wrong
        ([True, False], [0, 1], 1, 1),
        ([True, False], [0, 0, 1], 1, 1),  # a difficult one any number of times
        ([False] * 10, list(range(5)), 6 / 11, 0.5),
        ([False] * 10, list(range(3)), 3 / 11, 0.3),  # 0.30000000000000004 > 3 / 10
        ([False] * 10, list(range(6)), 6 / 11, 0.6),  # 0.6000000000000001 > 6 / 10
        ([False], [], 0, 0),
        ([True], [None], float("nan"), float("nan")),  # nothing to find
        ([], [None], float("nan"), float("nan")),
        ([False] * 2, [0, None, None, 1], (6 + 5 / 2) / 11, 0.75),
    ],
)
def test_cases_worked_out_by_hand(difficult, found, eleven, area):
    result = one_class(difficult, found)
    assert (result.ap07, result.area) == pytest.approx((eleven, area), abs=1e-12, nan_ok=True)
    assert result.objects == difficult.count(False) and result.detections == len(found)


def test_an_iou_of_exactly_half_counts():
    truth = [objects(([0, 0, 10, 20], 1, False))]
    for height, right in ((10, 1.0), (9.99, 0.0)):
        assert (
            average_precision.average_precision(
                detections((0, [0, 0, 10, height], 1, 0.9)), truth, 1
            )[0].ap07
            == right
        )


def test_the_right_box_on_the_wrong_image_or_of_the_wrong_class():
    truth = [objects((box(0), 1, False)), objects((box(1), 2, False))]
    result = average_precision.average_precision(
        detections((1, box(0), 1, 0.9), (1, box(1), 1, 0.8)), truth, 3
    )
    assert [one.ap07 for one in result] == pytest.approx([0, 0, float("nan")], nan_ok=True)
    assert [one.detections for one in result] == [2, 0, 0]
    assert average_precision.mean_over_classes([one.ap07 for one in result]) == 0 and np.isnan(
        average_precision.mean_over_classes([])
    )


def test_a_detection_takes_the_object_it_overlaps_most_even_if_that_is_taken():
    """COCO's rule would give the second detection the other object, which it overlaps by more than
    half too.
    """
    truth = [objects(([0, 0, 10, 10], 1, False), ([0, 0, 10, 12], 1, False))]
    found = detections((0, [0, 0, 10, 10], 1, 0.9), (0, [0, 0, 10, 10.4], 1, 0.8))
    assert average_precision.average_precision(found, truth, 1)[0].ap07 == pytest.approx(6 / 11)


def test_no_limit_of_detections():
    truth = [objects(*((box(number), 1, False) for number in range(250)))]
    found = detections(*((0, box(number), 1, 1 - number / 1000) for number in range(250)))
    assert average_precision.average_precision(found, truth, 1)[0].ap07 == 1.0


def second(
    found: average_precision.Detections, truth: list[Objects], label: int, plus: int
) -> tuple[float, float]:
    """Written from the development kit's text alone: inclusive boxes, one detection after the
    other.
    """
    ranked = sorted(
        (k for k in range(len(found.scores)) if found.labels[k] == label),
        key=lambda k: -found.scores[k],
    )
    used, total = set(), 0
    for image in truth:
        total += sum(
            1
            for k in range(len(image.labels))
            if image.labels[k] == label and not image.difficult[k]
        )
    points, hits, misses = [], 0, 0
    for k in ranked:
        image, (a, b, c, d) = int(found.images[k]), (float(v) for v in found.boxes[k])
        most, which = -1.0, None
        for j in range(len(truth[image].labels)):
            if truth[image].labels[j] != label:
                continue
            e, f, g, h = (float(v) for v in truth[image].boxes[j])
            wide, high = min(c, g) - max(a, e) + plus, min(d, h) - max(b, f) + plus
            if wide <= 0 or high <= 0:
                continue
            both = wide * high
            iou = both / ((c - a + plus) * (d - b + plus) + (g - e + plus) * (h - f + plus) - both)
            if iou > most:
                most, which = iou, j
        if which is None or most < 0.5:
            misses += 1
        elif truth[image].difficult[which]:
            continue
        elif (image, which) in used:
            misses += 1
        else:
            used.add((image, which))
            hits += 1
        points.append((hits / total if total else 0.0, hits / (hits + misses)))
    if not total:
        return float("nan"), float("nan")
    eleven = sum(max((p for r, p in points if r >= 0.1 * t), default=0.0) for t in range(11)) / 11
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[place:])
        before = recall
    return eleven, area


def random_set(draws) -> tuple[average_precision.Detections, list[Objects]]:
    """Up to 8 images with up to 6 objects of 3 classes, a fifth difficult, detections near them and
    elsewhere.
    """
    truth, rows = [], []
    for image in range(draws.integers(1, 9)):
        kept = []
        for _ in range(draws.integers(0, 7)):
            x, y = draws.integers(0, 40, 2)
            w, h = draws.integers(2, 16, 2)
            one = [x, y, x + w, y + h], int(draws.integers(1, 4)), bool(draws.random() < 0.2)
            kept.append(one)
            for _ in range(draws.integers(0, 4)):
                near = np.array(one[0]) + draws.integers(-2, 3, 4)
                near[2:] = np.maximum(near[2:], near[:2] + 1)
                label = one[1] if draws.random() < 0.9 else int(draws.integers(1, 4))
                rows.append((image, near.tolist(), label, float(draws.integers(1, 50)) / 50))
        truth.append(objects(*kept))
    return detections(*rows), truth


def test_equal_to_a_second_implementation_on_300_random_sets():
    """In half-open boxes; and their inclusive form with the devkit's + 1 gives the same."""
    for seed in range(300):
        found, truth = random_set(np.random.default_rng(seed))
        inclusive = found._replace(boxes=found.boxes - [0, 0, 1, 1])
        closed = [one._replace(boxes=one.boxes - torch.tensor([0, 0, 1, 1])) for one in truth]
        for label, ours in enumerate(average_precision.average_precision(found, truth, 3), 1):
            theirs = second(found, truth, label, plus=0)
            assert (ours.ap07, ours.area) == pytest.approx(theirs, abs=1e-12, nan_ok=True), (
                seed,
                label,
            )
            assert second(inclusive, closed, label, plus=1) == pytest.approx(
                theirs, abs=1e-12, nan_ok=True
            )


def large(images: int, count: int) -> tuple[average_precision.Detections, list[Objects]]:
    draws = np.random.default_rng(0)

    def boxes(n: int) -> np.ndarray:
        corner = draws.uniform(0, 300, (n, 2))
        return np.concatenate([corner, corner + draws.uniform(20, 200, (n, 2))], 1)

    truth = []
    for number in draws.integers(1, 6, images):
        labels = torch.from_numpy(draws.integers(1, 21, number))
        difficult = torch.from_numpy(draws.random(number) < 0.2)
        truth.append(Objects(torch.from_numpy(boxes(number)).float(), labels, difficult))
    found = average_precision.Detections(
        np.sort(draws.integers(0, images, count)),
        boxes(count),
        draws.integers(1, 21, count),
        draws.random(count),
    )
    return found, truth


def test_a_tenth_of_voc2007_with_30_000_detections_takes_seconds():
    found, truth = large(495, 30_000)
    start = time.perf_counter()
    result = average_precision.average_precision(found, truth, 20)
    assert time.perf_counter() - start < 6, (
        "all of it, ten times as much, must take less than a minute"
    )
    assert sum(one.detections for one in result) == 30_000 and any(one.ap07 > 0 for one in result)
