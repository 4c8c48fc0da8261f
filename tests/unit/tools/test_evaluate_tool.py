"""tools/evaluate.py: measures by hand, other weights, other sets of ImageNet."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from deit_tract.common.errors import UserError
from deit_tract.data.sets.load import load_validation
from deit_tract.evaluators import measures
from deit_tract.evaluators.measures import Samples
from deit_tract.models.weights import load_weights
from deit_tract.recipe.settings.recipe import Data
from tests.helpers.evaluate_tool import (
    OFFICIAL,
    evaluate,  # noqa: F401 - a fixture
    noise,
    photos,  # noqa: F401 - a fixture
    picture,
    refused,  # noqa: F401 - a fixture
    thousand,  # noqa: F401 - a fixture
)

# ---- measures, by hand ---------------------------------------------------------------------------

# ten samples of three classes: right at 0.95, 0.95, 0.55, 0.35 and 0.35, wrong at the others
HAND = Samples(
    labels=np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1]),
    best=np.array([[0, 1], [0, 1], [1, 0], [1, 2], [1, 0], [0, 1], [0, 2], [0, 1], [1, 2], [1, 2]]),
    confidence=np.array([0.95, 0.95, 0.95, 0.55, 0.55, 0.55, 0.35, 0.35, 0.35, 0.35], np.float32),
)


def test_per_class_by_hand():
    keys = ("name", "count", "top1", "top5", "predicted", "taken_for", "times")
    rows = [tuple(row[key] for key in keys) for row in measures.per_class(HAND, ["a", "b", "c"])]
    assert rows == [
        ("a", 4, 50.0, 75.0, 5, "b", 2),
        ("b", 6, 50.0, pytest.approx(500 / 6), 5, "a", 3),
        ("c", 0, None, None, 0, None, 0),
    ]


def test_confusion_by_hand():
    matrix = measures.confusion(HAND, 3)
    assert matrix.tolist() == [[2, 2, 0], [3, 3, 0], [0, 0, 0]]
    assert measures.confused(matrix, 5) == [(1, 0, 3), (0, 1, 2)]


def test_calibration_by_hand():
    # bins of 1/15: 0.95 in (0.9333, 1], the last; 0.55 in (0.5333, 0.6]; 0.35 in (0.3333, 0.4]
    error, bins = measures.calibration(HAND)
    assert [(number, row.count) for number, row in enumerate(bins) if row.count] == [
        (5, 4),
        (8, 3),
        (14, 3),
    ]
    assert [round(row.top1, 4) for row in bins if row.count] == [50.0, 33.3333, 66.6667]
    assert [round(row.confidence, 4) for row in bins if row.count] == [35.0, 55.0, 95.0]
    assert error == pytest.approx(
        (4 * (50 - 35) + 3 * (55 - 100 / 3) + 3 * (95 - 200 / 3)) / 10, abs=1e-5
    )
    assert measures.calibration(HAND, bins=1)[0] == pytest.approx(abs(50 - 59.0), abs=1e-5)


def test_a_bin_has_its_upper_end():
    edges = HAND._replace(confidence=np.array([0.0, 0.25, 0.5, 0.75, 1.0] * 2))
    assert [row.count for row in measures.calibration(edges, bins=4)[1]] == [4, 2, 2, 2]


def test_any_answer_counts_and_no_answer_is_left_out():
    answers = [[0, 2], [1], [0], [], [1, 0], [2], [0], [], [2], [1]]
    found = measures.any_of(HAND, answers)
    # right at first: samples 0, 4, 6, 9; among the best: also 1, 2, 8
    assert found == {"real_top1": 50.0, "real_top5": 87.5, "real_count": 8}


def test_imagenet_v2s_folders_are_numbers_not_texts(evaluate, refused, thousand, tmp_path):
    source, predict = thousand
    wrong = 0
    for number, pixels in enumerate(noise(60)):
        label = predict(pixels)
        if number % 3 == 0:
            label, wrong = (label + 1) % 1000, wrong + 1
        picture(tmp_path / "v2" / str(label) / f"{number}.jpeg", pixels)
    inside = [int(path.name) for path in (tmp_path / "v2").iterdir()]
    assert sorted(inside) != [int(name) for name in sorted(map(str, inside))], (
        "text order would not show"
    )
    options = ("--data", "imagenet_v2", "--data-dir", tmp_path / "v2")
    _, found = evaluate(*source, *options, "--no-verify", "--per-class")
    assert (found["count"], found["top1"]) == (60, 100 * (60 - wrong) / 60)
    assert found["per_class"][inside[0]]["name"].startswith(OFFICIAL[inside[0]])
    data = Data(name="imagenet", dir=str(tmp_path / "v2"), image_size=8, classes=1000)
    with pytest.raises(UserError, match="60 validation images, ImageNet-V2 has 10,000"):
        load_validation(data, name="imagenet_v2")
    (tmp_path / "above").mkdir()
    (tmp_path / "v2").rename(tmp_path / "above" / "imagenetv2-top-images-format-val")
    line = refused(*source, "--data", "imagenet_v2", "--data-dir", tmp_path / "above")
    assert "holds imagenetv2-top-images-format-val; give one of them as --data-dir" in line


def test_a_renamed_imagenet_v2_is_the_same(tmp_path):
    for label in (10, 2, 999):
        picture(tmp_path / OFFICIAL[label] / "x.jpeg", noise(1)[0])
    data = Data(name="imagenet", dir=str(tmp_path), image_size=8, classes=1000, verify=False)
    assert sorted(load_validation(data, name="imagenet_v2").labels.tolist()) == [2, 10, 999]
    picture(tmp_path / "cat" / "x.jpeg", noise(1)[0])
    with pytest.raises(UserError, match="1 of 4 folders are not classes of ImageNet-1k: cat"):
        load_validation(data, name="imagenet_v2")


def expected(net, folder: Path, **asked) -> float:
    """Cross-entropy by timm's own means."""
    config = timm.data.resolve_data_config(asked, pretrained_cfg=net.pretrained_cfg)
    transform, total = timm.data.create_transform(**config), 0.0
    for path in sorted(folder.glob("val/*/*.png")):
        with torch.inference_mode():
            logits = net.eval()(transform(Image.open(path))[None])
        total -= logits.log_softmax(1)[0, "abc".index(path.parent.name)].item()
    return total / 6


def test_deits_file_by_timms_name(evaluate, photos, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("test_vit2", num_classes=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # gammas that matter
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for key, v in net.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "deit.pth")
    assert "blocks.0.gamma_1" in state
    options = ("--model", "test_vit2", "--data", "folder", "--data-dir", photos)
    _, found = evaluate(tmp_path / "deit.pth", *options)
    assert found["val_loss"] == pytest.approx(expected(net, photos), rel=1e-5)
    assert (found["crop"], found["image_size"]) == (net.pretrained_cfg["crop_pct"], 160)
    _, found = evaluate(tmp_path / "deit.pth", *options, "--crop", 0.7)
    assert found["val_loss"] == pytest.approx(expected(net, photos, crop_pct=0.7), rel=1e-5)
    _, found = evaluate(tmp_path / "deit.pth", *options, "--image-size", 192)
    larger = timm.create_model("test_vit2", num_classes=3, img_size=192)
    load_weights(larger, str(tmp_path / "deit.pth"))
    sized = expected(larger, photos, input_size=(3, 192, 192))
    assert found["val_loss"] == pytest.approx(sized, rel=1e-5) and found["image_size"] == 192


def test_timms_own_weights(evaluate, refused, photos, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = timm.create_model("test_vit2", num_classes=3)
    save_file(net.state_dict(), tmp_path / "timm.safetensors")
    known, name = timm.models._registry._model_pretrained_cfgs, "test_vit2.r160_in1k"
    local = dataclasses.replace(
        known[name], file=str(tmp_path / "timm.safetensors"), num_classes=3, hf_hub_id=None
    )
    monkeypatch.setitem(known, name, local)
    options = ("--data", "folder", "--data-dir", photos)
    _, found = evaluate(f"timm:{name}", *options)
    assert found["val_loss"] == pytest.approx(expected(net, photos), rel=1e-5)
    monkeypatch.setitem(
        known, name, dataclasses.replace(local, file=str(tmp_path / "gone.safetensors"))
    )
    assert refused(f"timm:{name}", *options).startswith(f"timm:{name}: timm cannot load {name} (")
