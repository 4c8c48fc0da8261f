"""Where fine-tuning starts: runs, files, timm names; heads of other data sets; what is frozen."""

import shutil

import pytest
import timm
import torch
from conftest import short, train
from safetensors.torch import load_file

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model, freeze
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.train import checkpoint, log, loop, start

PRETRAINED = ["model.pretrained=true"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of two steps on the ten digits, with TrAct."""
    folder = tmp_path_factory.mktemp("digits")
    train(folder, *short(2, "data.workers=0", "save.every_steps=1", "save.every_epochs=null"))
    return folder


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", ["data.workers=0", *overrides])


def started(source: object, *overrides: str) -> tuple[torch.nn.Module, str]:
    settings = recipe(*overrides)
    net = build_model(settings)
    return net, start.load_start_weights(net, settings, str(source))


def fails(source: object, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        started(source, *overrides)
    return str(caught.value)


def same(net: torch.nn.Module, weights: dict, but: str = " ") -> bool:
    return all(
        torch.equal(value, weights[key])
        for key, value in net.state_dict().items()
        if not key.startswith(but)
    )


def test_a_run_its_checkpoint_its_file_and_an_export_give_the_same_weights(digits, tmp_path):
    newest = checkpoint.newest(digits / "checkpoints")
    weights = load_file(newest / "model.safetensors")
    shutil.copy(newest / "model.safetensors", tmp_path)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "timm.pth.tar")
    torch.save({"model": weights}, tmp_path / "deit.pth")
    places = [
        digits,
        newest,
        newest / "model.safetensors",
        tmp_path,
        tmp_path / "timm.pth.tar",
        tmp_path / "deit.pth",
    ]
    for place in places:
        net, said = started(place)
        assert same(net, weights) and said == f"; starts from {place}, its classifier too"
    assert newest.name == "step_00000002", "the newest"
    with_tract, without = started(digits)[0], started(digits, "model.tract=null")[0]
    assert same(with_tract, without.state_dict()), "TrAct leaves no trace in the weights"


def test_a_run_that_is_being_written_is_left_alone(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".step_00000003.tmp").mkdir()
    (folder / "step_00000002" / "optimizer.pt").write_bytes(b"cut off")
    assert start.weights_of(str(tmp_path / "run")) == str(
        folder / "step_00000001" / "model.safetensors"
    )
    assert (folder / ".step_00000003.tmp").is_dir() and (folder / "step_00000002").is_dir()
    (folder / "step_00000001" / "progress.json").unlink()
    assert "no checkpoint is whole" in fails(tmp_path / "run")


def test_a_timm_name(monkeypatch):
    """The hub is not asked here: timm makes a model of its own in its place."""
    create, asked = timm.create_model, []

    def offline(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    settings = load_recipe("transfer_cifar10_vit_s", ["data.image_size=96", "model.tract=0.1"])
    net = build_model(settings)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    start.load_start_weights(net, settings, "timm:deit3_small_patch16_224")
    assert asked[-1] == ("deit3_small_patch16_224", True)
    assert net.pos_embed.shape == (1, 36, 384), "196 patches made 36"
    kept = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    assert {"head.weight", "head.bias"} <= kept and not any(
        "attn.qkv.weight" in key for key in kept
    )


def test_a_timm_name_that_cannot_be_had_is_one_line():
    assert "cannot be read as weights" in fails("timm:vit_no_such")


def test_what_is_not_there_is_said(tmp_path):
    assert fails(tmp_path / "no").endswith(
        "give a run's folder, a .safetensors or .pth file, or timm:NAME"
    )
    assert "holds neither checkpoints/ nor model.safetensors" in fails(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "this run has no checkpoint yet" in fails(tmp_path)


def test_the_head_of_another_data_set_is_never_kept_without_a_word(digits, tmp_path):
    other = ["data.name=synthetic"]  # ten classes too
    message = fails(digits, *other)
    assert (
        "its classifier is for the 10 classes of digits, not the 10 of synthetic; set model.new_head=true"
        in message
    )
    assert "not the 12 of digits" in fails(digits, "data.classes=12")
    net, said = started(digits, *other, "model.new_head=true")
    weights = load_file(checkpoint.newest(digits / "checkpoints") / "model.safetensors")
    fresh = build_model(recipe(*other))
    assert torch.equal(net.head.weight, fresh.head.weight) and not torch.equal(
        net.head.weight, weights["head.weight"]
    )
    assert same(net, weights, but="head.") and said.endswith("a fresh classifier")
    file = checkpoint.newest(digits / "checkpoints") / "model.safetensors"
    assert same(started(file, *other)[0], weights), "a file given by itself is taken at its word"


def test_every_recipe_for_another_set_has_a_fresh_head():
    from deit_tract.recipe import source

    for name in source.names():
        settings = load_recipe(name)
        if (
            settings.task == "classify"
            and settings.model.pretrained
            and settings.data.name != "imagenet"
        ):
            assert settings.model.new_head, name


TRAINED = {
    "head": lambda key: key.startswith("head."),
    "attn": lambda key: ".attn." in key or key.startswith("head.") or key == "pos_embed",
}


@pytest.mark.parametrize("part", ["head", "attn"])
@pytest.mark.parametrize("optimizer", ["lamb", "sgd"])
def test_only_what_is_trained_moves(digits, tmp_path, part, optimizer):
    settings = recipe(*short(3), *PRETRAINED, "model.tract=null", f"model.train={part}", f"optim.name={optimizer}",
                      "ema.decay=0.9", "save.every_steps=2", "save.every_epochs=null")  # fmt: skip
    loop.train(settings, tmp_path, str(digits))
    before = load_file(checkpoint.newest(digits / "checkpoints") / "model.safetensors")
    after = load_file(checkpoint.newest(tmp_path / "checkpoints") / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if TRAINED[part](key)}
    last = after
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000003")
    loop.train(settings, tmp_path, str(digits))  # goes on from step 2
    again = load_file(checkpoint.newest(tmp_path / "checkpoints") / "model.safetensors")
    assert all(torch.equal(last[key], again[key]) for key in last)


def test_frozen_settings_that_cannot_be_are_one_line(tmp_path):
    with pytest.raises(
        UserError,
        match=r"TrAct trains the first layer, which model.train=attn freezes; set model.tract",
    ):
        recipe(*PRETRAINED, "model.train=attn")
    with pytest.raises(
        UserError, match=r"'head' would freeze a fresh model's layers; set model.pretrained=true"
    ):
        recipe("model.train=head", "model.tract=null")
    with pytest.raises(UserError, match="ResNet has no attention layers; use head or all"):
        freeze(timm.create_model("resnet10t", num_classes=2), "attn")


def test_the_plan_counts_what_is_trained(tmp_path):
    shown = {}
    for part in ("all", "attn", "head"):
        overrides = ["model.tract=null", *PRETRAINED, f"model.train={part}"]
        shown[part] = make_plan(recipe(*overrides), tmp_path / "run")
    assert shown["all"].cost.trainable == shown["all"].cost.parameters
    assert shown["head"].cost.trainable == 64 * 10 + 10 and "650 of them trained" in show_plan(
        shown["head"]
    )
    assert (
        shown["head"].memory["optimizer"]
        < shown["attn"].memory["optimizer"]
        < shown["all"].memory["optimizer"]
    )
    assert (
        shown["head"].cost.activations
        < shown["attn"].cost.activations
        <= shown["all"].cost.activations
    )


def test_the_last_evaluation_is_the_result_and_the_best_is_called_so(tmp_path):
    from deit_tract import cli

    train(tmp_path, *short(1, "data.workers=0"))
    evaluation = log.read_metrics(tmp_path)[-1]
    summary = {"final": evaluation, "best": evaluation, "steps": 1, "seconds": 2.0}
    assert cli._ending(summary, "top1").count("top1") == 1
    summary["best"] = {**evaluation, "step": 0, "top1": 99.0}
    assert (
        cli._ending(summary, "top1")
        == f"finished: top1 {evaluation['top1']:.2f} (best top1 99.00 at step 0) after 1 steps in 2 s"
    )
