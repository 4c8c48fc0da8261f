"""Detection's settings, its random draws, and its evaluation image by image."""

import json
import random

import numpy as np
import pytest
import torch

from deit_tract.common.errors import UserErrors
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch, Views, unstacked
from deit_tract.data.sets.boxes import Objects
from deit_tract.data.sets.load import load_splits
from deit_tract.data.stream import View
from deit_tract.evaluators import average_precision, build_evaluators
from deit_tract.evaluators.detection import Detection, class_table, drawn
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks import build_task, detect
from tests.helpers.detect import RECIPE, SMALL


def task(*overrides: str) -> detect.Detect:
    recipe = load_recipe(RECIPE, [*SMALL, *overrides])
    return build_task(recipe, load_splits(recipe.data, recipe.detect).train)


def evaluator(*overrides: str) -> Detection:
    recipe = load_recipe(RECIPE, [*SMALL, *overrides])
    [one] = build_evaluators(recipe, load_splits(recipe.data, recipe.detect).val)
    return one


def batch(source: Source, *indices: int) -> Batch:
    views = Views(source.images, source.transform)
    return unstacked(views.__getitems__([View(index, 0) for index in indices])).data


# ---- the recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mix.mixup=0.8", "'mix.mixup' has no effect for task detect; remove it"),
        ("loss.name=ce", "'loss' has no effect for task detect; remove it"),
        (
            "augment.three_augment=true",
            "'augment.three_augment' has no effect for task detect; remove it",
        ),
        ("evaluate.crop=0.9", "'evaluate.crop' has no effect for task detect; remove it"),
        ("model.drop_path=0.1", "'model.drop_path' has no effect for task detect; remove it"),
        ("expect.top1=80", "'expect.top1' has no effect for task detect; remove it"),
        ("model.name=resnet18", "no detector 'resnet18'; set it to fasterrcnn_vgg16"),
        ("data.name=digits", "'digits' has no boxes; use one of synthetic, voc, voc2007"),
        ("data.classes=2", "2, but detect.class_names has 3; set it to 3"),
        ("detect.class_names=[a, A, c]", "duplicate class name; names are compared without case"),
        ("detect.max_size=90", "90 is below data.image_size 96; raise it"),
        ("detect.rpn_negative_iou=0.8", "0.8 is above detect.rpn_positive_iou 0.7; lower it"),
        (
            "schedule.milestones=[]",
            "multistep and milestones need each other; set both, or neither",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(setting, message):
    with pytest.raises(UserErrors) as error:
        load_recipe(RECIPE, [*SMALL, setting])
    assert str(error.value) == f"--set {setting}: {message}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.pictures=8", "'evaluate.pictures' has no effect for task classify; remove it"),
        (
            "model.unfreeze_from=4",
            "'model.unfreeze_from' has no effect for task classify; remove it",
        ),
        (
            "data.name=voc2007",
            "'voc2007' has boxes instead of one class per image; set task=detect",
        ),
    ],
)
def test_what_only_detection_reads_is_refused_elsewhere(setting, message):
    with pytest.raises(UserErrors) as error:
        load_recipe("quickstart", [setting])
    assert str(error.value) == f"--set {setting}: {message}"


def test_layers_that_stay_as_they_are_drawn_are_refused():
    with pytest.raises(
        UserErrors, match="the first 4 convolutions would keep their random weights"
    ):
        load_recipe("voc2007_frcnn_vgg16_frozen", ["model.pretrained=false"])


# ---- the task ------------------------------------------------------------------------------------


def test_the_lanes_seed_decides_which_anchors_and_proposals_are_sampled():
    detection = task("detect.rpn_sample=16", "detect.roi_sample=8")
    detection.model.train()
    values = []
    for seed in (1, 2, 1):
        torch.rand(7)
        random.random()
        np.random.rand()
        values.append(
            {
                name: loss.item()
                for name, loss in detection.loss(
                    detection.model, [batch(detection.source, 0)], [seed]
                ).items()
            }
        )
    assert values[0] == values[2] != values[1]
    parts = [value for name, value in values[0].items() if name != "loss"]
    assert len(parts) == 4 and values[0]["loss"] == pytest.approx(sum(parts), rel=1e-6)


def test_what_is_found_does_not_depend_on_the_batch():
    detection = evaluator()
    model = task().model.eval()
    together = detection.measure(model, batch(detection.source, *range(4)))
    assert together["count"] == 4 and sum(len(record[2]) for record in together["records"]) > 0
    for index, expected in enumerate(together["records"]):
        (single,) = detection.measure(model, batch(detection.source, index))["records"]
        assert all(np.array_equal(one, other) for one, other in zip(single, expected, strict=True))


def test_perfect_detections_are_100_percent_in_any_order_and_an_image_counts_once():
    detection = evaluator()
    records = []
    for index, objects in enumerate(detection.source.images.objects):
        scores = np.linspace(1, 0.5, len(objects.labels))
        records.append((index, objects.boxes.numpy(), objects.labels.numpy().astype(float), scores))
    metrics = detection.summarize({"count": len(records), "records": records[::-1]})
    assert metrics["map07"] == metrics["map_area"] == 100 and set(metrics["ap07"].values()) - {
        None
    } == {100.0}
    with pytest.raises(AssertionError, match="twice"):
        detection.summarize({"count": len(records), "records": [*records, records[0]]})


def test_a_class_without_objects_is_null_and_not_in_the_mean():
    detection = evaluator("data.classes=4", "detect.class_names=[a, b, c, none]")
    detection.source.images.objects = [
        Objects(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([1]), torch.tensor([False]))
    ]
    metrics = detection.summarize(
        {"records": [(0, np.array([[0.0, 0, 9, 9]]), np.array([1.0]), np.array([0.9]))]}
    )
    assert metrics["map07"] == 100 and metrics["ap07"] == {
        "a": 100.0,
        "b": None,
        "c": None,
        "none": None,
    }
    json.dumps(metrics, allow_nan=False)


def test_the_table_of_classes():
    rows = [
        average_precision.ClassPrecision(0.5, 0.25, 4, 9),
        average_precision.ClassPrecision(float("nan"), float("nan"), 0, 1234),
    ]
    assert class_table(["cat", "dining table"], rows).splitlines() == [
        "| class        | AP 07 | AP area | objects | detections |",
        "| ------------ | ----: | ------: | ------: | ---------: |",
        "| cat          | 50.00 |   25.00 |       4 |          9 |",
        "| dining table |     - |       - |       0 |      1,234 |",
        "| mean         | 50.00 |   25.00 |       4 |      1,243 |",
    ]


def test_pictures_show_objects_white_and_certain_detections_in_colour():
    photo, _ = evaluator().source.images[0]
    boxes = np.array([[5.0, 30, 40, 60], [50, 30, 80, 60]], np.float32)
    image = drawn(photo, (0, boxes, np.array([1.0, 2]), np.array([0.9, 0.1])), ["a", "b", "c"])
    colours = {tuple(color) for color in image.flatten(1).T.tolist()}
    assert {(255, 255, 255), (0x56, 0xB4, 0xE9)} <= colours and (0, 0x9E, 0x73) not in colours
    nothing = drawn(photo, (0, boxes[:0], np.zeros(0), np.zeros(0)), ["a"])
    assert nothing.shape == image.shape
