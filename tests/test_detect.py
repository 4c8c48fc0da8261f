"""Detection in the trainer: draws from the lane's seed, evaluation image by image, resume and processes to the bit."""

import io
import json
import random
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import ROOT, command, finish, kill, losses, run, sets, short, train
from PIL import Image
from safetensors.torch import load_file

from deit_tract import tasks
from deit_tract.common.errors import UserErrors
from deit_tract.data.loader import Views
from deit_tract.data.sets.boxes import Objects
from deit_tract.data.stream import View
from deit_tract.evaluators import average_precision
from deit_tract.evaluators.detection import drawn, table
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks import detect
from deit_tract.train import log, loop
from deit_tract.train.evaluate import evaluate

RECIPE = "voc2007_frcnn_vgg16_tract"
SMALL = (
    "data.name=synthetic", "data.classes=3", "detect.class_names=[a, b, c]", "model.pretrained=false",
    "model.args.width=8", "model.args.fc=64", "data.image_size=96", "detect.max_size=128", "data.workers=0",
    "detect.anchor_sizes=[24, 48]", "detect.anchor_ratios=[1]", "detect.rpn_min_size=2", "detect.score=0.02",
)  # fmt: skip
ADAM = (
    "optim.name=adamw",
    "optim.lr=1e-3",
    "optim.clip_grad=10.0",
    "optim.bias_lr=1",
    "schedule.milestones=[6]",
)


def task(*overrides: str) -> detect.Detect:
    return tasks.build(load_recipe(RECIPE, [*SMALL, *overrides]))


def batch(detection: detect.Detect, *indices: int) -> list[list]:
    views = Views(detection.train_data, detection.train_transform)
    return detection.collate(views.__getitems__([View(index, 0) for index in indices]))


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


# ---- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mix.mixup=0.8", "'mix.mixup' means nothing for task detect; remove it"),
        ("loss.name=ce", "'loss' means nothing for task detect; remove it"),
        (
            "augment.three_augment=true",
            "'augment.three_augment' means nothing for task detect; remove it",
        ),
        ("evaluate.crop=0.9", "'evaluate.crop' means nothing for task detect; remove it"),
        ("model.drop_path=0.1", "'model.drop_path' means nothing for task detect; remove it"),
        ("expect.top1=80", "'expect.top1' means nothing for task detect; remove it"),
        ("model.name=resnet18", "no detector 'resnet18'; set it to fasterrcnn_vgg16"),
        ("data.name=digits", "'digits' has no boxes; use one of voc, voc2007, synthetic"),
        ("data.classes=2", "2, but detect.class_names has 3; set it to 3"),
        (
            "detect.class_names=[a, A, c]",
            "a name stands there twice; names are told apart without case",
        ),
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
        ("evaluate.pictures=8", "'evaluate.pictures' means nothing for task classify; remove it"),
        (
            "model.unfreeze_from=4",
            "'model.unfreeze_from' means nothing for task classify; remove it",
        ),
        ("data.name=voc2007", "'voc2007' has boxes, no class an image; set task=detect"),
    ],
)
def test_what_only_detection_reads_is_refused_elsewhere(setting, message):
    with pytest.raises(UserErrors) as error:
        load_recipe("quickstart", [setting])
    assert str(error.value) == f"--set {setting}: {message}"


def test_layers_that_stay_as_they_are_drawn_are_refused():
    with pytest.raises(UserErrors, match="the first 4 convolutions would stay as they are drawn"):
        load_recipe("voc2007_frcnn_vgg16_frozen", ["model.pretrained=false"])


# ---- the task --------------------------------------------------------------------------------------------------------


def test_the_lanes_seed_decides_which_anchors_and_proposals_are_sampled():
    detection = task("detect.rpn_sample=16", "detect.roi_sample=8")
    detection.bare.train()
    values = []
    for seed in (1, 2, 1):
        torch.rand(7), random.random(), np.random.rand()
        values.append(
            {
                name: loss.item()
                for name, loss in detection.loss(detection.bare, batch(detection, 0), seed).items()
            }
        )
    assert values[0] == values[2] != values[1]
    parts = [value for name, value in values[0].items() if name != "loss"]
    assert len(parts) == 4 and values[0]["loss"] == pytest.approx(sum(parts), rel=1e-6)


def test_what_is_found_does_not_depend_on_the_batch():
    detection = task()
    detection.bare.eval()
    samples = Views(detection.val_data, detection.eval_transform).__getitems__(
        [View(index, 0) for index in range(4)]
    )
    together = detection.evaluate(detection.bare, detection.collate(samples))
    assert together["count"] == 4 and sum(len(record[2]) for record in together["records"]) > 0
    for sample, expected in zip(samples, together["records"], strict=True):
        (alone,) = detection.evaluate(detection.bare, detection.collate([sample]))["records"]
        assert all(np.array_equal(one, other) for one, other in zip(alone, expected, strict=True))


def test_perfect_detections_are_100_percent_in_any_order_and_an_image_counts_once():
    detection = task()
    records = []
    for index, objects in enumerate(detection.val_data.objects):
        scores = np.linspace(1, 0.5, len(objects.labels))
        records.append((index, objects.boxes.numpy(), objects.labels.numpy().astype(float), scores))
    metrics = detection.summarize({"count": len(records), "records": records[::-1]})
    assert metrics["map07"] == metrics["map_area"] == 100 and set(metrics["ap07"].values()) - {
        None
    } == {100.0}
    with pytest.raises(AssertionError, match="twice"):
        detection.summarize({"count": len(records), "records": [*records, records[0]]})


def test_a_class_without_objects_is_null_and_not_in_the_mean():
    detection = task("data.classes=4", "detect.class_names=[a, b, c, none]")
    detection.val_data.objects = [
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
    assert table(["cat", "dining table"], rows).splitlines() == [
        "| class        | AP 07 | AP area | objects | detections |",
        "| ------------ | ----: | ------: | ------: | ---------: |",
        "| cat          | 50.00 |   25.00 |       4 |          9 |",
        "| dining table |     - |       - |       0 |      1,234 |",
        "| mean         | 50.00 |   25.00 |       4 |      1,243 |",
    ]


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_metrics_a_table_and_pictures(tmp_path):
    records = train(
        tmp_path, *short(3, *SMALL, "evaluate.pictures=2", "evaluate.every_steps=2"), recipe=RECIPE
    )
    assert len(losses(records)) == 3
    evaluations = [record for record in records if "map07" in record]
    assert [record["step"] for record in evaluations] == [2, 3]
    assert {"map07", "map_area", "detections", "ap07"} <= evaluations[0].keys()
    assert json.loads((tmp_path / "summary.json").read_text())["final"] == evaluations[1]
    folder = tmp_path / "evaluations" / "step_00000003"
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000.jpg",
        "000001.jpg",
        "classes.md",
    ]
    assert (folder / "classes.md").read_text().count("\n") == 6 and Image.open(
        folder / "000000.jpg"
    ).size[0] >= 96


def test_pictures_show_objects_white_and_certain_detections_in_colour():
    photo, _ = task().val_data[0]
    boxes = np.array([[5.0, 30, 40, 60], [50, 30, 80, 60]], np.float32)
    image = drawn(photo, (0, boxes, np.array([1.0, 2]), np.array([0.9, 0.1])), ["a", "b", "c"])
    colours = {tuple(color) for color in image.flatten(1).T.tolist()}
    assert {(255, 255, 255), (0x56, 0xB4, 0xE9)} <= colours and (0, 0x9E, 0x73) not in colours
    nothing = drawn(photo, (0, boxes[:0], np.zeros(0), np.zeros(0)), ["a"])
    assert nothing.shape == image.shape


def test_a_recorded_evaluation_is_that_of_its_checkpoint(tmp_path):
    """Standing alone: the weights read back, another batch size, and a worker."""
    records = train(tmp_path, *short(3, *SMALL), recipe=RECIPE)
    recipe = load_recipe(RECIPE, [*SMALL, "evaluate.batch_size=3", "data.workers=1"])
    alone = tasks.build(recipe)
    alone.bare.load_state_dict(weights(tmp_path, 3))
    metrics = evaluate(alone, alone.bare, recipe, Accelerator(cpu=True))
    assert metrics == {name: records[-1][name] for name in metrics}


def test_real_photos_are_trained_on_and_evaluated_alike_standing_alone(tmp_path, real_images):
    """All 20 classes of VOC at 128 px; in eight steps the loss falls, though nothing is found yet."""
    folder = str(real_images("voc100.tar"))
    narrow = ("model.pretrained=false", "model.args.width=8", "model.args.fc=64", "data.verify=false",
              "data.image_size=128", "detect.max_size=192", "detect.anchor_sizes=[16, 32, 64]",
              "detect.rpn_min_size=4", "detect.score=0.02", "data.workers=0")  # fmt: skip
    adam = (*ADAM, "schedule.warmup_steps=0")
    records = train(tmp_path / "run", *short(8, *narrow, *adam), recipe=RECIPE, data_dir=folder)
    assert losses(records)[-1] < losses(records)[0] and len(records[-1]["ap07"]) == 20
    file = tmp_path / "out.json"
    code, _, err = tool("evaluate.py", tmp_path / "run", "--batch-size", 7, "--json", file)
    found = json.loads(file.read_text())
    assert code == 0 and found["count"] == 40 and found["detections"] > 0, err
    assert all(
        found[name] == records[-1][name] for name in ("map07", "map_area", "detections", "ap07")
    )


def test_fine_tuning_starts_from_vgg16s_weights(tmp_path):
    from test_detector import small_vgg

    state = small_vgg(8, 64)
    torch.save(state, tmp_path / "vgg16.pth")
    recipe = load_recipe(RECIPE, short(1, *SMALL, "optim.lr=1e-9", "optim.weight_decay=0"))
    loop.train(recipe, tmp_path / "run", str(tmp_path / "vgg16.pth"))
    ours = weights(tmp_path / "run", 1)
    torch.testing.assert_close(ours["backbone.28.weight"], state["features.28.weight"])
    torch.testing.assert_close(ours["roi_heads.box_head.fc7.weight"], state["classifier.3.weight"])


def test_frozen_layers_stay_and_the_others_move(tmp_path):
    from test_detector import small_vgg

    state = {name: value * 0.05 for name, value in small_vgg(8, 64).items()}
    torch.save(state, tmp_path / "vgg16.pth")
    overrides = [*SMALL, "model.pretrained=true"]
    recipe = load_recipe("voc2007_frcnn_vgg16_frozen", short(2, *overrides))
    loop.train(recipe, tmp_path / "run", str(tmp_path / "vgg16.pth"))
    ours = weights(tmp_path / "run", 2)
    moved = [
        place
        for place in (0, 2, 5, 7, 10, 28)
        if not torch.equal(ours[f"backbone.{place}.weight"], state[f"features.{place}.weight"])
    ]
    assert moved == [10, 28]


@pytest.mark.slow
def test_it_learns_to_find_rectangles(tmp_path):
    """From scratch in 448 steps; an untrained model has 0 %."""
    overrides = short(448, *SMALL, *ADAM, "log.every_steps=32", "evaluate.every_steps=224")
    records = train(tmp_path, *overrides, recipe=RECIPE)
    curve = [record["map07"] for record in records if "map07" in record]
    print(f"mAP07 {curve}")
    assert len(curve) == 2 and curve[-1] > 15 and losses(records)[-1] < 0.7 * losses(records)[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    overrides = short(120, *SMALL, *ADAM, "save.every_steps=40")
    expected = train(tmp_path / "whole", *overrides, recipe=RECIPE)
    folder = tmp_path / "killed"
    arguments = ["--recipe", RECIPE, "--output", str(folder), *sets(overrides)]
    process = command(*arguments)
    while not (folder / "checkpoints" / "step_00000040").exists():
        assert process.poll() is None, finish(process)
    kill(process)
    finish(process)
    code, out, err = run(*arguments)
    assert code == 0 and ("from step 40" in out or "from step 80" in out), err
    records = log.read_metrics(folder)
    assert losses(records) == losses(expected) and records[-1]["ap07"] == expected[-1]["ap07"]
    ours, theirs = weights(folder, 120), weights(tmp_path / "whole", 120)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path):
    """Two lanes of a photo each; with the lanes' gradients summed in their order even to the bit."""
    overrides = short(
        12, *SMALL, "batch.size=2", "batch.lanes=2", "batch.exact=true", "evaluate.pictures=1"
    )
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        code, out, err = run(
            "--recipe", RECIPE, "--output", str(folder), *sets(overrides), processes=processes
        )
        assert code == 0 and f"on {processes} process(es)" in out, err
    one, two = (log.read_metrics(tmp_path / str(processes)) for processes in (1, 2))
    assert losses(one) == losses(two)
    assert {name: one[-1][name] for name in ("map07", "map_area", "detections", "ap07")} == {
        name: two[-1][name] for name in ("map07", "map_area", "detections", "ap07")
    }
    ours, theirs = weights(tmp_path / "1", 12), weights(tmp_path / "2", 12)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pictures = [
        (tmp_path / str(processes) / "evaluations" / "step_00000012").iterdir()
        for processes in (1, 2)
    ]
    assert [sorted(path.name for path in folder) for folder in pictures] == [
        ["000000.jpg", "classes.md"]
    ] * 2


# ---- tools -----------------------------------------------------------------------------------------------------------


def tool(name: str, *arguments: object) -> tuple[int, str, list[str]]:
    """A tool in this process: exit code, stdout, the lines of stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue().splitlines()


def test_the_evaluation_tool_gives_the_runs_own_numbers(tmp_path):
    record = train(tmp_path / "run", *short(2, *SMALL), recipe=RECIPE)[-1]
    file = tmp_path / "out.json"
    code, out, _ = tool(
        "evaluate.py", tmp_path / "run", "--per-class", "--batch-size", 3, "--json", file
    )
    found = json.loads(file.read_text())
    assert code == 0 and f"mAP07 {record['map07']:.2f} %" in out and "| mean  |" in out
    assert all(found[name] == record[name] for name in ("map07", "map_area", "detections", "ap07"))
    assert found["count"] == 16 and [one["class"] for one in found["per_class"]] == ["a", "b", "c"]
    code, _, _ = tool("evaluate.py", tmp_path / "run", "--per-class", tmp_path / "classes.csv")
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert code == 0 and rows[0] == "class,ap07,area,objects,detections" and len(rows) == 4
    for options, line in (
        (
            ["--calibration"],
            f"error: --calibration: {tmp_path}/run is a detector; leave out --calibration",
        ),
        (
            ["--data", "digits"],
            "error: --data digits: has no boxes; give one of voc, voc2007, synthetic",
        ),
    ):
        assert tool("evaluate.py", tmp_path / "run", *options)[::2] == (2, [line])
    code, _, err = tool("export.py", tmp_path / "run", tmp_path / "out")
    assert code == 2 and "is a detector, which timm does not have" in err[0]


def results(folder: Path, seed: int, tract: str, value: float) -> Path:
    """A finished run's folder as training would leave it."""
    folder.mkdir()
    recipe = load_recipe(RECIPE, [*SMALL, f"seed={seed}", f"model.tract={tract}"])
    (folder / "recipe.yaml").write_text(explain(recipe))
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 9, "epoch": 1.0, "map07": value}) + "\n"
    )
    (folder / "summary.json").write_text(json.dumps({"exit": "finished", "seconds": 60.0}))
    return folder


def test_the_comparison_is_of_map_seed_by_seed(tmp_path):
    values = {("null", 0): 60.0, ("null", 1): 62.0, ("0.1", 0): 61.5, ("0.1", 1): 62.5}
    folders = [
        results(tmp_path / f"{arm}{seed}", seed, arm, value)
        for (arm, seed), value in values.items()
    ]
    code, out, _ = tool("compare.py", *folders, "--plot", tmp_path / "plot.png")
    assert code == 0 and "| map07 |" in out and "Final mAP07 (%) of finished runs" in out
    assert "final mAP07 in points:\n- paired difference +1.00 (sd 0.71" in out
    assert (
        "TrAct's baseline: map 0.659, map_sd 0.005 (TrAct, Table 5)" in out and "- no curve" in out
    )
    train(tmp_path / "digits", *short(1))
    code, _, err = tool("compare.py", folders[0], tmp_path / "digits")
    assert code == 2 and err == [
        "error: command line: runs of different tasks; compare runs of one task"
    ]
