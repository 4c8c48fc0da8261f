"""tools/predict.py and tools/features.py: what an evaluation sees, of any model."""

import csv
import json
import os
import runpy
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from deit_tract.evaluators import classification
from deit_tract.models.build import build_model
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results import inference
from deit_tract.results.class_names import in_words
from deit_tract.results.features import embed
from tests.helpers import ROOT
from tests.helpers.detect import RECIPE, SMALL
from tests.helpers.evaluate_tool import evaluate, photos  # noqa: F401 - fixtures


@pytest.fixture
def tool(monkeypatch, capsys):
    """A function that runs a tool in this process: exit code, stdout and stderr."""

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of timm's smallest ViT with three classes."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit2", num_classes=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(net.state_dict(), file)
    return file, "--model", "test_vit2"


def test_logits_are_an_evaluations_to_the_bit(
    tool, evaluate, weights, photos, tmp_path, monkeypatch
):
    seen = []
    measure = classification.count_right
    monkeypatch.setattr(
        classification,
        "count_right",
        lambda logits, labels: seen.append(logits) or measure(logits, labels),
    )
    options = ("--batch-size", 4, "--precision", "bf16", "--workers", 0)
    source, *named = weights
    evaluate(source, *named, *options, "--data", "folder", "--data-dir", photos)
    file = tmp_path / "found.csv"
    images = sorted((photos / "val").glob("*/*.png"))
    code, out, err = tool("predict.py", source, *images, *named, *options, "--csv", file)
    assert (code, out) == (0, f"wrote {file}: 6 images\n"), err
    logits = torch.cat(seen)
    rows = list(csv.DictReader(file.open()))
    assert [row["image"] for row in rows[::3]] == list(map(str, images))
    best = logits.argsort(descending=True)
    expected = logits.softmax(1).gather(1, best).flatten().tolist()
    assert [float(row["probability"]) for row in rows] == expected
    assert [int(row["class"]) for row in rows] == best.flatten().tolist()
    # and the embeddings are what the classifier sees
    out = tmp_path / "features.npz"
    code, _, err = tool("features.py", source, photos / "val", *named, *options[:2], "--out", out)
    assert code == 0, err
    found = np.load(out)
    net = timm.create_model("test_vit2", num_classes=3, checkpoint_path=str(source)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    inputs = torch.stack([transform(Image.open(path)) for path in images])
    with torch.inference_mode():
        wanted = net.forward_head(net.forward_features(inputs), pre_logits=True)
    assert found["features"] == pytest.approx(wanted.numpy(), abs=1e-5)
    assert found["files"].tolist() == list(map(str, images))


def test_a_broken_image_is_named_and_left_out(tool, weights, photos, tmp_path):
    source, *named = weights
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    good = photos / "val" / "a" / "0.png"
    folder = tmp_path / "seen"
    arguments = (source, broken, good, photos / "val" / "[b]" / "*.png", *named, "--top", 1)
    code, out, err = tool("predict.py", *arguments, "--pictures", folder)
    assert code == 1 and err.startswith(f"warning: {broken}: cannot be read as an image (")
    assert "skipped: 1 image of 4 that cannot be read" in out and f"{good}: " in out
    assert len(list(folder.rglob("*.jpg"))) == 3
    code, _, err = tool("predict.py", source, broken, *named)
    assert code == 1 and "Traceback" not in err
    code, out, _ = tool("features.py", source, broken, good, *named, "--out", tmp_path / "f.npz")
    assert code == 1 and np.load(tmp_path / "f.npz")["files"].tolist() == [str(good)]
    names = tmp_path / "names"  # one of which is no text
    names.mkdir()
    odd = os.fsdecode(os.fsencode(names / "odd") + b"\xff.png")
    shutil.copy(good, odd)
    table = tmp_path / "odd.csv"
    code, out, err = tool("predict.py", source, names, *named)
    assert code == 0 and "odd" in out, err
    code, _, err = tool("predict.py", source, names, *named, "--csv", table)
    assert code == 0 and table.read_bytes().count(os.fsencode(odd)) == 3, err
    for missing, message in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "seen" / "*.png", "no such file or folder"),
    ):
        code, _, err = tool("predict.py", source, missing, *named)
        assert code == 2 and message in err and err.count("\n") == 1


def test_batches_are_made_as_they_are_asked_for(weights, photos):
    """Bounded memory: the first result is there before the last image is read."""
    from deit_tract.data.feed import Source
    from deit_tract.results.trained import Choice, load_trained

    images = inference.find_images([str(photos)] * 2)
    assert len(images) == 6
    read = []

    class Counting(inference.Numbered):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    model = load_trained(str(weights[0]), Choice(model="test_vit2"))
    request = inference.Computing(source="", batch_size=2, workers=0)
    source = Source(Counting(images), model.transform)
    results = inference.compute(
        model, source, request, lambda net, batch: len(batch["image"]), inference.Skipped()
    )
    assert next(results) == 2 and len(read) <= 4
    assert list(results) == [2, 2] and read == list(range(6))


def test_names_of_classes(tool, photos, tmp_path):
    assert in_words(["n01440764", "n02012849", "n03126707", "cat"]) == [
        "tench",
        "crane (n02012849)",
        "crane (n03126707)",
        "cat",
    ]
    recipe = load_recipe("quickstart", ["data.workers=0"])
    save = tmp_path / "run" / "checkpoints" / "step_00000001"
    save.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(explain(recipe))
    weights = save / "w.safetensors"
    save_file(build_model(recipe).state_dict(), weights)
    image = photos / "val" / "a" / "0.png"

    def first(*options: object) -> str:
        code, out, err = tool("predict.py", weights, image, "--top", 1, *options)
        assert code == 0, err
        return out.removeprefix(f"{image}: ").rpartition(" ")[0].rpartition(" ")[0]

    assert first().isdigit()
    names = [f"digit {number}" for number in range(10)]
    part = {"images": 1}
    known = json.dumps({"classes": names, "train": part, "val": part})
    (tmp_path / "run" / "fingerprint.json").write_text(known)
    assert first() in names
    labels = [f"label {number}" for number in range(10)]
    (save / "config.json").write_text(json.dumps({"label_names": labels}))
    assert first("--recipe", tmp_path / "run" / "recipe.yaml") in labels


@pytest.mark.parametrize(
    ("name", "options"),
    [("cifar_cnn", {}), ("cifar_net", {"net": "squeezenet"}), ("vit_cifar", {})],
)
def test_our_own_networks_embed_as_timms(name, options):
    net = timm.create_model(name, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        features, _ = embed(net, {"image": images, "label": torch.arange(2)})
        assert features.shape == (2, net.num_features)
        assert torch.equal(
            net.get_submodule(net.pretrained_cfg["classifier"])(features), net(images)
        )


def test_a_detector_draws_boxes(tool, photos, tmp_path):
    small = [*SMALL, "detect.score=0.0", "model.args.width=8"]
    recipe = load_recipe(RECIPE, small)
    folder = tmp_path / "detector"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(explain(recipe))
    save_file(build_model(recipe).state_dict(), folder / "model.safetensors")
    image, table = photos / "val" / "a" / "0.png", tmp_path / "boxes.csv"
    pictures = tmp_path / "pictures"
    code, out, err = tool(
        "predict.py", folder, image, "--csv", table, "--pictures", pictures, "--workers", 0
    )
    assert code == 0 and "1 image" in out, err
    rows = list(csv.DictReader(table.open()))
    assert rows and {row["name"] for row in rows} <= {"a", "b", "c"}
    assert all(0 <= float(row["x0"]) <= float(row["x1"]) <= 260 for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert Image.open(pictures / "0.png.jpg").size == Image.open(image).size
    code, _, err = tool("features.py", folder, image, "--out", tmp_path / "f.npz")
    assert code == 2 and "has no forward_head" in err
