"""tools/export.py: timm loads what it writes to the same weights, logits and pixels; nothing else
is touched.
"""

import json
import runpy
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from deit_tract.common.errors import UserError
from deit_tract.data.transforms import augment
from deit_tract.models.build import build_model
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results import export, trained
from tests.helpers import ROOT
from tests.helpers.runs import short, train

STEPS = short(
    4, "ema.decay=0.5", "save.every_steps=2", "evaluate.every_steps=2", "log.every_steps=1000"
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of four steps on the digits with checkpoints and evaluations at 2 and 4; every option
    of the model set.
    """
    folder = tmp_path_factory.mktemp("digits")
    train(
        folder, *STEPS, "model.drop_path=0.3", "model.args.proj_drop_rate=0.1", "evaluate.crop=0.7"
    )
    return folder


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """A function that runs a tool in this process and returns what it printed."""

    def call(*arguments: object, tool: str = "export") -> str:
        monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run_tool, capsys):
    """A function that runs the tool and returns the one line that it ends with."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            run_tool(*arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


def loaded(folder: Path) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def as_trained(run: Path, weights: str) -> torch.nn.Module:
    """The model as the loop has it: with TrAct and drop path, in eval mode."""
    net = build_model(load_recipe(str(run / "recipe.yaml")))
    net.load_state_dict(load_file(run / "checkpoints" / weights))
    return net.eval()


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ((), "step_00000004/model.safetensors"),
        (("--ema",), "step_00000004/ema.safetensors"),
        (("--step", 2), "step_00000002/model.safetensors"),
    ],
)
def test_timm_gives_equal_logits(run_tool, digits, tmp_path, options, weights):
    run_tool(digits, tmp_path / "out", *options)
    ours, theirs = as_trained(digits, weights), loaded(tmp_path / "out")
    images = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    assert type(theirs.patch_embed.proj) is torch.nn.Conv2d


def test_nothing_of_tract_is_in_it(run_tool, digits, tmp_path):
    run_tool(digits, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "recipe.yaml",
        "README.md",
    }
    config = json.loads((tmp_path / "config.json").read_text())
    plain = timm.create_model(
        config["architecture"], img_size=8, in_chans=1, num_classes=10, **config["model_args"]
    )
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(plain.state_dict()) and file.metadata() == {"format": "pt"}
    assert "tract" not in (tmp_path / "config.json").read_text().lower()
    assert not [key for key in config["model_args"] if "rate" in key]
    # the keys that timm 1.0.26 knows: it raises on others
    known = {
        "num_classes",
        "input_size",
        "fixed_input_size",
        "interpolation",
        "crop_pct",
        "crop_mode",
        "mean",
        "std",
    }
    assert set(config["pretrained_cfg"]) == known | {"pool_size", "first_conv", "classifier"}


def test_timm_prepares_images_as_the_evaluation_does(run_tool, digits, tmp_path):
    run_tool(digits, tmp_path)
    config = resolve_model_data_config(loaded(tmp_path))
    ours = augment.eval_transform(load_recipe(str(digits / "recipe.yaml")))
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 31), dtype=np.uint8))
    assert torch.equal(create_transform(**config)(image), ours(image))


def test_the_tool_that_evaluates_finds_the_runs_numbers(run_tool, digits, tmp_path):
    run_tool(digits, tmp_path / "out", "--ema")
    run_tool(
        tmp_path / "out",
        "--data",
        "digits",
        "--workers",
        0,
        "--json",
        tmp_path / "a.json",
        tool="evaluate",
    )
    run_tool(digits, "--ema", "--json", tmp_path / "b.json", tool="evaluate")
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert all(ours[key] == theirs[key] for key in ("count", "top1", "top5", "val_loss"))


def test_the_recipe_and_the_numbers_travel_along(run_tool, digits, tmp_path):
    run_tool(digits, tmp_path, "--step", 2)
    ours, theirs = (load_recipe(str(folder / "recipe.yaml")) for folder in (digits, tmp_path))
    assert differences(ours, theirs) == []
    records = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    reached = next(record for record in records if record["step"] == 2 and "top1" in record)
    card = (tmp_path / "README.md").read_text()
    assert (
        f"top-1 {reached['top1']:.2f} %, top-5 {reached['top5']:.2f} %, "
        f"loss {reached['val_loss']:.4f}" in card
    )
    assert "after step 2\n" in card and "TrAct with lambda 0.1" in card
    assert f'timm.create_model("local-dir:{tmp_path.name}", pretrained=True)' in card


def test_numbers_that_a_run_does_not_have_are_not_made_up(run_tool, digits, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text((digits / "recipe.yaml").read_text())
    (run / "checkpoints").symlink_to(digits / "checkpoints")
    run_tool(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "the run did not evaluate them" in card
        and "of a run that has not finished" in card
        and "top-1" not in card
    )


# ---- other models --------------------------------------------------------------------------------

RGB = (
    "data.name=synthetic",
    "data.channels=3",
    "data.mean=[0.4,0.5,0.6]",
    "data.std=[0.2,0.3,0.25]",
    "data.workers=0",
)
RGB += (
    "data.image_size=32",
    "batch.size=4",
    "batch.lanes=1",
    "evaluate.batch_size=64",
    "evaluate.crop=0.9",
)


SMALL = ("depth=1", "embed_dim=24", "num_heads=2")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", (*SMALL, "global_pool=token", "class_token=true")),
        ("deit3_small_patch16_224.fb_in1k", (*SMALL, "no_embed_class=true")),
        ("test_efficientnet", ()),
        ("test_resnet", ()),
        ("cifar_net", ("net=shufflenetv2",)),
    ],
)
def test_other_models(run_tool, tmp_path, name, arguments):
    transformer = "vit" in name or "deit" in name
    token = ["model.class_token_std=0.02"] if transformer else ["model.drop_path=0"]
    args = [f"model.args.{argument}" for argument in arguments]
    run = tmp_path / "run"
    bare = tmp_path / "bare.yaml"  # the quickstart without its model's arguments
    bare.write_text(
        (ROOT / "recipes/quickstart.yaml").read_text().replace("  args: {", "  args: {}  # {")
    )
    train(run, *short(1), *RGB, f"model.name={name}", *args, *token, recipe=str(bare))
    run_tool(run, tmp_path / "out")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        ours, theirs = (
            as_trained(run, "step_00000001/model.safetensors")(images),
            loaded(tmp_path / "out")(images),
        )
    assert torch.equal(ours, theirs)


def test_timm_reads_the_names(digits, tmp_path):
    names = [f"n0{number}" for number in range(10)]
    export.write(trained.load_trained(str(digits)), tmp_path / "out", names, "card")
    assert list(loaded(tmp_path / "out").pretrained_cfg["label_names"]) == names
    official = ImageNetInfo().label_names()[:10]
    export.write(trained.load_trained(str(digits)), tmp_path / "out", official, "card")
    config = loaded(tmp_path / "out").pretrained_cfg
    assert config["label_descriptions"]["n01440764"].startswith("tench")


# ---- what is refused, and what stays -------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_earlier_export_is_replaced_and_nothing_else_is(run_tool, refused, digits, tmp_path):
    out = tmp_path / "deep" / "out"
    run_tool(digits, out)
    first = contents(out)
    run_tool(digits, out, "--step", 2)
    assert contents(out)["model.safetensors"] != first["model.safetensors"] and len(
        contents(out)
    ) == len(first)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    assert "contains something other than an exported model (notes.txt)" in refused(digits, out)
    assert contents(out) == before and [path.name for path in out.parent.iterdir()] == ["out"]
    assert "is a file; name a folder" in refused(digits, out / "notes.txt")
    other = tmp_path / "model.safetensors"
    other.write_text("somebody's weights")
    assert "contains something other" in refused(digits, tmp_path)


def test_a_run_is_not_written_over(refused, digits):
    before = contents(digits)
    assert "contains something other than an exported model" in refused(digits, digits)
    assert contents(digits) == before


@pytest.mark.parametrize("what", ["weights", "logits", "images", "failure"])
def test_what_timm_would_load_differently_is_refused(digits, tmp_path, monkeypatch, what):
    model, create = trained.load_trained(str(digits)), timm.create_model

    def different(name: str, **options):
        net = create(name, **options)
        if what == "failure":
            raise RuntimeError("no such\nthing")
        if what == "weights":
            net.head.bias.data[3] += 1e-6
        if what == "logits":
            net.norm.eps = 1e-3
            net.fc_norm.eps = 1e-3
        return net

    monkeypatch.setattr(timm, "create_model", different)
    if what == "images":
        other = load_recipe(str(digits / "recipe.yaml"), ["augment.interpolation=bicubic"])
        model.transform = augment.eval_transform(other)
    says = {
        "weights": "loads other weights",
        "logits": "computes other logits",
        "images": "prepares images differently",
    }
    with pytest.raises(UserError, match=says.get(what, r"timm cannot load it \(no such thing\)")):
        export.write(model, tmp_path / "out", None, "card")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(refused, digits, tmp_path, monkeypatch):
    assert "holds no run" in refused(tmp_path, tmp_path / "out")
    assert "has no checkpoint of step 9; it has 2, 4" in refused(
        digits, tmp_path / "out", "--step", 9
    )
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "--push: there is no Hugging Face token; run" in refused(
        digits, tmp_path / "out", "--push", "jane/vit"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        refused(digits, tmp_path / "out", "--onnx")
        == "--onnx: needs onnx and onnxscript; pip install onnx onnxscript"
    )
    assert list(tmp_path.iterdir()) == []


# ---- the hub and ONNX ----------------------------------------------------------------------------


class Hub:
    """In place of the hub's client: what was sent to it; refuses a repository of somebody else."""

    sent: dict = {}

    def __init__(self, token: str, library_name: str):
        Hub.sent = {"token": token}

    def create_repo(self, name: str, exist_ok: bool):
        if not name.startswith("jane/"):
            raise RuntimeError("403 Forbidden:\nnot yours")
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(self, repo_id: str, folder_path: Path, **options):
        Hub.sent |= {"repository": repo_id, "files": contents(folder_path)}


def test_push_sends_the_folder_that_was_checked(run_tool, refused, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    out = run_tool(digits, tmp_path / "out", "--push", "jane/vit")
    assert "pushed to https://huggingface.co/jane/vit" in out and "hf_secret" not in out
    assert Hub.sent == {
        "token": "hf_secret",
        "repository": "jane/vit",
        "files": contents(tmp_path / "out"),
    }
    assert (
        'timm.create_model("hf-hub:jane/vit", pretrained=True)'
        in (tmp_path / "out" / "README.md").read_text()
    )
    line = refused(digits, tmp_path / "out", "--push", "john/vit")
    assert (
        line == "--push john/vit: the hub refused (403 Forbidden: not yours); "
        f"the export is in {tmp_path / 'out'}"
    )


def test_onnx_computes_the_same(run_tool, digits, tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    run_tool(digits, tmp_path, "--onnx")
    session = reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    for batch in (1, 3):
        images = torch.randn(batch, 1, 8, 8)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(
                torch.from_numpy(logits), loaded(tmp_path)(images), rtol=1e-4, atol=1e-5
            )
