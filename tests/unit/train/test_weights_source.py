"""What RUN|FILE|timm:NAME|torchvision:NAME means: each kind, and each mistake."""

import json
import shutil

import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import checkpoint
from deit_tract.train.weights_source import WeightsSource, find_weights, recipe_of_run
from tests.helpers.checkpoint import save


@pytest.fixture
def run(tmp_path):
    """The folder of a run with checkpoints of steps 5 and 10."""
    folder = tmp_path / "run"
    for step in (5, 10):
        save(folder / "checkpoints", step)
    (folder / "recipe.yaml").write_text(explain(load_recipe("quickstart")))
    return folder


@pytest.fixture
def export(run, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    shutil.copy(run / "recipe.yaml", folder)
    shutil.copy(run / "checkpoints" / "step_00000005" / "model.safetensors", folder)
    (folder / "config.json").write_text("{}")
    return folder


def refused(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        find_weights(*map(str, arguments), **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:VGG16_Weights.DEFAULT"])
def test_a_hubs_name(name):
    assert find_weights(name) == WeightsSource(name, "hub", name)
    assert find_weights(name).recipe is None


def test_a_run_is_its_newest_checkpoint(run):
    found = find_weights(str(run))
    assert (found.kind, found.run, found.step) == ("run", run, 10)
    assert found.weights == str(run / "checkpoints" / "step_00000010" / "model.safetensors")
    assert found.recipe == run / "recipe.yaml" == recipe_of_run(run) and str(found) == str(run)


def test_another_step_and_averaged_weights(run):
    found = find_weights(str(run), step=5, ema=True)
    assert found.weights == str(run / "checkpoints" / "step_00000005" / "ema.safetensors")
    assert found.step == 5


def test_the_best_weights(run):
    assert "has no weights of its best evaluation; leave out --best" in refused(run, best=True)
    weights = {"model": {"w": torch.ones(2)}}
    checkpoint.save_best(run / "checkpoints", 7, weights, {"step": 7, "top1": 50.0})
    found = find_weights(str(run), best=True)
    file = run / "checkpoints" / "best_00000007" / "model.safetensors"
    assert (found.weights, found.step, found.best) == (str(file), 7, True)
    assert find_weights(str(run)).step == 10, "the newest is never the best by itself"
    assert "--best: chooses the step; leave out --step" in refused(run, best=True, step=5)
    assert "has no averaged weights" in refused(run, best=True, ema=True)
    file.write_bytes(b"cut off")
    assert "is not intact" in refused(run, best=True)


def test_a_finished_run_is_complete(run):
    summary = {"exit": "finished", "steps": 10, "final": {"top1": 50.0}}
    (run / "summary.json").write_text(json.dumps(summary))
    last = {"step": 10, "epoch": 1.0, "top1": 50.0}
    line = json.dumps(last) + "\n"
    metrics = run / "metrics.jsonl"
    for text, what in (
        ("", "ends at step 0 of 10, which the run has finished"),
        (line.replace("50", "51"), "its last evaluation is not the one in summary.json"),
        ("\0" + line, "1: is not JSON"),
    ):
        metrics.write_text(text)
        assert what in refused(run)
        assert find_weights(str(run / "checkpoints" / "step_00000010")).step == 10
    metrics.write_text(line)
    assert find_weights(str(run)).step == 10


def test_a_checkpoint_knows_its_run(run, monkeypatch):
    place = run / "checkpoints" / "step_00000005"
    monkeypatch.chdir(place)
    for given in (place, "."):
        found = find_weights(str(given))
        assert (found.kind, found.run, found.step) == ("checkpoint", run, 5)
        assert found.weights == str(place / "model.safetensors")


def test_a_checkpoints_file_knows_its_run(run):
    file = run / "checkpoints" / "step_00000005" / "ema.safetensors"
    found = find_weights(str(file))
    assert (found.kind, found.weights, found.run) == ("file", str(file), run)
    assert found.recipe == run / "recipe.yaml"


def test_an_export_and_its_file(export):
    folder = find_weights(str(export))
    file = find_weights(str(export / "model.safetensors"))
    assert (folder.kind, file.kind) == ("export", "file")
    assert folder.weights == file.weights == str(export / "model.safetensors")
    assert folder.exported == file.exported == export and folder.run is None
    assert folder.recipe == export / "recipe.yaml"


def test_a_bare_file_and_its_folder(export):
    (export / "config.json").unlink()
    (export / "recipe.yaml").unlink()
    folder, file = find_weights(str(export)), find_weights(str(export / "model.safetensors"))
    assert (folder.kind, file.kind) == ("folder", "file")
    assert folder.recipe is folder.run is folder.exported is file.recipe is None


def test_what_is_not_there(tmp_path):
    give = "give a run's folder, a file of weights or timm:NAME"
    assert refused(tmp_path / "no") == f"{tmp_path / 'no'}: no such file or folder; {give}"
    assert "no such file or folder; is it timm:NAME?" in refused("vit_tiny_patch16_224")
    assert refused(tmp_path) == f"{tmp_path}: holds neither a run nor weights; {give}"
    with pytest.raises(UserError, match="holds no run; give a folder"):
        recipe_of_run(tmp_path)


def test_a_run_without_what_is_asked_for(run):
    assert "has no checkpoint of step 7; it has 5, 10" in refused(run, step=7)
    place = run / "checkpoints" / "step_00000010"
    (place / "model.safetensors").write_bytes(b"cut off")
    what = "is not intact (model.safetensors is truncated or changed); choose another step"
    assert what in refused(run, step=10) and what in refused(place)
    assert find_weights(str(run)).step == 5
    shutil.rmtree(run / "checkpoints")
    assert "this run has no checkpoint yet" in refused(run)
