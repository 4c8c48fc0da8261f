"""tools/evaluate.py gives a run's own numbers again, from every place its weights can be."""

import csv
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deit_tract.common.errors import UserError
from deit_tract.data.sets.imagenet_labels import real_answers
from deit_tract.models.drop_path import DropPath
from deit_tract.results import trained
from deit_tract.train import checkpoint
from tests.helpers.evaluate_tool import (
    OFFICIAL,
    digits,  # noqa: F401 - a fixture
    evaluate,  # noqa: F401 - a fixture
    noise,
    photos,  # noqa: F401 - a fixture
    picture,
    refused,  # noqa: F401 - a fixture
    thousand,  # noqa: F401 - a fixture
)
from tests.helpers.runs import short, train

# ---- a run's own numbers -------------------------------------------------------------------------


def same(found: dict, record: dict, prefix: str = "") -> bool:
    return all(found[key] == record[prefix + key] for key in ("top1", "top5", "val_loss"))


def test_a_runs_numbers_come_back_to_the_last_bit(evaluate, digits):
    folder, records = digits
    assert records[60]["top1"] > 30 and records[30] != records[60], (
        "a model that has learnt nothing shows nothing"
    )
    for step, prefix, options in (
        (60, "", ()),
        (30, "", ("--step", 30)),
        (60, "ema_", ("--ema",)),
        (30, "ema_", ("--step", 30, "--ema")),
    ):
        out, found = evaluate(folder, *options)
        assert (
            same(found, records[step], prefix) and found["step"] == step and found["count"] == 360
        )
        assert f"top-1 {found['top1']:.2f} %" in out and found["images_per_s"] > 0


def test_a_bf16_runs_numbers_come_back_to_the_last_bit(evaluate, tmp_path):
    bf16 = ("precision.autocast=bf16", "model.args.depth=2", "ema.decay=0.5")
    record = train(tmp_path / "run", *short(3, *bf16))[-1]
    for prefix, options in (("", ()), ("ema_", ("--ema",))):
        _, found = evaluate(tmp_path / "run", *options)
        assert same(found, record, prefix) and found["precision"] == "bf16"
    exact = evaluate(tmp_path / "run", "--precision", "float32")[1]
    assert exact["val_loss"] != record["val_loss"]


def deit_names(state: dict) -> dict:
    """A state dict as DeiT-III's files have it."""
    return {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for key, v in state.items()
    }


def test_the_same_weights_from_every_place(evaluate, digits, tmp_path):
    folder, records = digits
    checkpoint = folder / "checkpoints" / "step_00000060"
    state = load_file(checkpoint / "model.safetensors")
    save_file(state, tmp_path / "copy.safetensors")
    deit = deit_names(state)
    torch.save({"model": deit, "args": Namespace(lr=1.0)}, tmp_path / "deit.pth")
    assert any("gamma_1" in key for key in deit)
    recipe = ("--recipe", folder / "recipe.yaml", "--data", "digits")
    for source in (
        [checkpoint],
        [checkpoint / "model.safetensors"],
        [tmp_path / "copy.safetensors", *recipe],
        [tmp_path / "deit.pth", *recipe],
    ):
        assert same(evaluate(*source)[1], records[60]), source


def test_another_runs_half_written_checkpoint_stays(evaluate, digits):
    part = digits[0] / "checkpoints" / ".step_00000090.tmp"
    part.mkdir()
    evaluate(digits[0])
    assert part.is_dir()
    part.rmdir()


def test_tables_and_picture_agree_with_the_counts(evaluate, digits, tmp_path):
    table, picture = tmp_path / "classes.csv", tmp_path / "confusion.png"
    options = ("--per-class", table, "--calibration", "--confusion", picture, "--batch-size", 50)
    out, found = evaluate(digits[0], *options)
    rows = list(csv.DictReader(table.open()))
    assert [int(row["count"]) for row in rows] == [42, 28, 26, 48, 38, 39, 30, 26, 36, 47]
    right = sum(float(row["top1"]) * int(row["count"]) for row in rows) / 360
    matrix = np.array(found["confusion"])
    assert right == pytest.approx(found["top1"]) == pytest.approx(100 * matrix.trace() / 360)
    assert sum(row["count"] for row in found["calibration"]) == matrix.sum() == 360
    assert Image.open(picture).size[0] > 300 and "taken for" in out
    printed, _ = evaluate(digits[0], "--per-class")
    assert printed.splitlines()[4].split()[:3] == ["0", "0", "42"]


def test_bf16(evaluate, digits):
    _, found = evaluate(digits[0], "--precision", "bf16")
    exact = digits[1][60]
    assert found["precision"] == "bf16" and found["count"] == 360
    assert found["val_loss"] != exact["val_loss"] and found["val_loss"] == pytest.approx(
        exact["val_loss"], abs=0.05
    )


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--step", 7], "has no checkpoint of step 7; it has 30, 60"),
        (["RUN", "--data", "digitz"], "invalid choice: 'digitz'"),
        (
            ["RUN", "--data", "folder"],
            "data.dir: data set 'folder' lies on disk; give --data-dir DIR",
        ),
        (
            ["RUN", "--data", "folder", "--data-dir", "PHOTOS"],
            "number of classes is 10, but the data has 3",
        ),
        (["RUN", "--real", "x.json", "--data", "digits"], "--real: its labels are for ImageNet's"),
        (["RUN", "--model", "test_vit2"], "--model: RUN leaves no choice of it; leave out --model"),
        (["RUN", "--crop", "1e-9"], "--crop: '1e-9' is not a number from 0.1 to 1"),
        (["RUN", "--batch-size", 0], "--batch-size: '0' is not a whole number from 1 to 65,536"),
        (["RUN", "--workers", 99999], "--workers: '99999' is not a whole number from 0 to 1,024"),
        (["RUN", "--precision", "fp16"], "--precision: fp16 needs a CUDA GPU"),
        (["RUN", "--confusion", "no/such/c.png"], "no/such/c.png: its folder does not exist"),
        (["--per-class", "RUN"], "does not end with .csv; put"),
        (
            ["RUN", "--per-class", "classes.txt"],
            "--per-class: 'classes.txt' does not end with .csv; put",
        ),
        (["RUN/no"], "no such file or folder"),
        (["RUN/checkpoints"], "holds neither a run nor weights"),
        (["torchvision:VGG16"], "torchvision has weights to start from only; give timm:NAME"),
        (["timm:test_vitt"], "timm has no model 'test_vitt'; did you mean test_vit"),
        (["test_vit"], "test_vit: no such file or folder; is it timm:NAME?"),
        (["WEIGHTS"], "does not say which model it is of; give --model NAME of timm, or --recipe"),
        (["WEIGHTS", "--model", "test_vit2", "--data", "digits"], "lacks "),
        (
            ["WEIGHTS", "--model", "test_vit2", "--recipe", "quickstart"],
            "both say what the weights are of",
        ),
        (["WEIGHTS", "--recipe", "quickstart", "--ema"], "--ema: WEIGHTS leaves no choice of it"),
    ],
)
def test_a_mistake_is_one_line(refused, digits, photos, tmp_path, arguments, message):
    if torch.cuda.is_available() and "fp16" in arguments:
        pytest.skip("this machine has fp16")
    weights = tmp_path / "w.safetensors"
    save_file(load_file(digits[0] / "checkpoints" / "step_00000060" / "model.safetensors"), weights)
    places = {"RUN": str(digits[0]), "PHOTOS": str(photos), "WEIGHTS": str(weights)}
    for place, path in places.items():
        arguments = [str(word).replace(place, path) for word in arguments]
        message = message.replace(place, path)
    assert message in refused(*arguments)


def test_a_run_without_averaged_weights_or_checkpoint(refused, digits, tmp_path):
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    (other / "recipe.yaml").write_text((digits[0] / "recipe.yaml").read_text())
    assert "this run has no checkpoint yet" in refused(other)
    place = other / "checkpoints" / "step_00000030"
    place.mkdir()
    for file in (digits[0] / "checkpoints" / place.name).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    (place / "model.safetensors").write_bytes(b"cut off")
    assert "is not intact (model.safetensors is truncated or changed); choose another" in refused(
        other, "--step", 30
    )
    weights = {"model": load_file(digits[0] / "checkpoints" / place.name / "model.safetensors")}
    checkpoint.save(other / "checkpoints", 30, weights, {}, {}, keep=1)
    assert "has no averaged weights; leave out --ema" in refused(other, "--ema")


def test_a_trained_model_is_plain_timm(digits):
    net = trained.load_trained(str(digits[0])).net
    assert type(net.patch_embed.proj) is torch.nn.Conv2d and not net.training
    assert not [layer for layer in net.modules() if isinstance(layer, DropPath)]


def test_reals_answers_belong_to_the_images_numbers(evaluate, refused, thousand, tmp_path):
    source, predict = thousand
    answers: list[list[int]] = [[] for _ in range(1000)]
    numbers = np.random.default_rng(1).permutation(
        1000
    )  # a number is not the image's place in the sorted classes
    right = {}
    for synset, number, pixels in zip(OFFICIAL, numbers.tolist(), noise(1000), strict=True):
        picture(tmp_path / "val" / synset / f"ILSVRC2012_val_{number + 1:08d}.JPEG", pixels)
        if number % 4:
            right[number] = number % 3 == 0
            answers[number] = (
                [7, predict(pixels)] if right[number] else [(predict(pixels) + 1) % 1000]
            )
    file = tmp_path / "real.json"
    file.write_text(json.dumps(answers))
    options = ("--data-dir", tmp_path, "--no-verify")  # no train/: it is not needed
    out, found = evaluate(*source, *options, "--real", file)
    assert found["count"] == 1000 and found["real_count"] == len(right) == 750
    assert (
        found["real_top1"] == pytest.approx(100 * sum(right.values()) / 750)
        and "ReaL: top-1" in out
    )
    with pytest.raises(UserError, match="1,000 entries, ReaL has 50,000"):
        real_answers(file, None, complete=True)
    file.write_text(json.dumps(answers[:999]))
    assert "999 entries, but the data has image 1000" in refused(*source, *options, "--real", file)
    file.write_text("[[1000]]")
    assert "not a list of lists of classes 0 to 999" in refused(*source, *options, "--real", file)
