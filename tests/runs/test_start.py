"""Fine-tuning runs: what they start from, whose head they keep, and what moves."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from deit_tract.models.build import build_model
from deit_tract.train import checkpoint, log, loop
from deit_tract.train.weights_source import find_weights
from tests.helpers.runs import short, train
from tests.helpers.start import PRETRAINED, fails, recipe, started


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of two steps on the ten digits, with TrAct."""
    folder = tmp_path_factory.mktemp("digits")
    train(folder, *short(2, "data.workers=0", "save.every_steps=1", "save.every_epochs=null"))
    return folder


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
        assert same(net, weights) and said == f"{place}, its classifier too"
    assert newest.name == "step_00000002", "the newest"
    with_tract, without = started(digits)[0], started(digits, "model.tract=null")[0]
    assert same(with_tract, without.state_dict()), "TrAct leaves no trace in the weights"


def test_a_run_that_is_being_written_is_left_alone(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".step_00000003.tmp").mkdir()
    (folder / "step_00000002" / "optimizer.pt").write_bytes(b"cut off")
    assert find_weights(str(tmp_path / "run")).weights == str(
        folder / "step_00000001" / "model.safetensors"
    )
    assert (folder / ".step_00000003.tmp").is_dir() and (folder / "step_00000002").is_dir()
    (folder / "step_00000001" / "progress.json").unlink()
    assert "no checkpoint is intact" in fails(tmp_path / "run")


def test_the_head_of_another_data_set_is_never_kept_without_a_word(digits, tmp_path):
    other = ["data.name=synthetic"]  # ten classes too
    message = fails(digits, *other)
    assert (
        "its classifier is for the 10 classes of digits, not the 10 of synthetic; "
        "set model.new_head=true" in message
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


TRAINED = {
    "head": lambda key: key.startswith("head."),
    "attn": lambda key: ".attn." in key or key.startswith("head.") or key == "pos_embed",
}


@pytest.mark.parametrize("part", ["head", "attn"])
@pytest.mark.parametrize("optimizer", ["lamb", "sgd"])
def test_only_what_is_trained_moves(digits, tmp_path, part, optimizer):
    settings = recipe(
        *short(3),
        *PRETRAINED,
        "model.tract=null",
        f"model.train={part}",
        f"optim.name={optimizer}",
        "ema.decay=0.9",
        "save.every_steps=2",
        "save.every_epochs=null",
    )
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


def test_the_last_evaluation_is_the_result_and_the_best_is_called_so(tmp_path):
    from deit_tract import cli

    train(tmp_path, *short(1, "data.workers=0"))
    evaluation = log.read_metrics(tmp_path)[-1]
    summary = {"final": evaluation, "best": evaluation, "steps": 1, "seconds": 2.0}
    assert cli._ending(summary, "top1").count("top1") == 1
    summary["best"] = {**evaluation, "step": 0, "top1": 99.0}
    assert (
        cli._ending(summary, "top1")
        == f"finished: top1 {evaluation['top1']:.2f} (best top1 99.00 at step 0) after 1 steps "
        "in 2 s"
    )
