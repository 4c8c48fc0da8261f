"""What a failed start, an unreadable image or a kill must not cost."""

import json

import pytest
from PIL import Image
from safetensors.torch import load_file

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results.card import model_card
from deit_tract.results.trained import Choice, load_trained
from deit_tract.train import checkpoint, log, loop, start
from deit_tract.train.weights_source import find_weights
from tests.helpers.faults import state
from tests.helpers.images import write_grey_photos
from tests.helpers.loop import same, weights
from tests.helpers.runs import VOLATILE, short, train, train_until

GREY = short(
    2,
    "data.workers=0",
    "data.classes=2",
    "data.image_size=16",
    "batch.size=8",
    "batch.lanes=2",
    "augment.repeats=1",
    "model.args.depth=1",
    "model.args.patch_size=4",
)


@pytest.fixture
def photos(tmp_path):
    """Two classes of grey photos, as arguments of `train`."""
    write_grey_photos(tmp_path / "data")
    return {"recipe": "folder_vit_ti", "data_dir": str(tmp_path / "data")}


def test_a_start_that_fails_leaves_its_folder_to_the_correction(tmp_path, monkeypatch):
    right = short(1, "data.workers=0")

    def fails(match: str, *wrong: str, weights: str | None = None) -> None:
        with pytest.raises(UserError, match=match):
            loop.train(load_recipe("quickstart", [*right, *wrong]), tmp_path / "run", weights)

    fails("data.classes: 11, but the data has 10", "data.classes=11")
    fails("vit_no_such", "model.name=vit_no_such")
    missing = str(tmp_path / "no")
    fails("no such file or folder", "model.pretrained=true", weights=missing)
    fails("no such folder", "data.name=folder", f"data.dir={missing}")
    fails("published", "expect.published=no_such")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "build_task", interrupted)
        train(tmp_path / "run", *right, "seed=1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Run, "optimizer_step", interrupted)
        train(tmp_path / "run", *right, "seed=2")
    assert train(tmp_path / "run", *right)[-1]["step"] == 1


def test_a_run_goes_on_and_is_fine_tuned_with_its_own_classes_only(tmp_path, photos):
    train(tmp_path / "run", *GREY, "save.every_steps=1", **photos)
    (tmp_path / "run" / "checkpoints" / "step_00000002").rename(tmp_path / "away")
    (tmp_path / "data").rename(tmp_path / "moved")
    photos["data_dir"] = str(tmp_path / "moved")
    train(tmp_path / "run", *GREY, **photos)
    for part in ("train", "val"):
        (tmp_path / "moved" / part / "b").rename(tmp_path / "moved" / part / "c")
    with pytest.raises(UserError, match="was trained on other classes"):
        train(tmp_path / "run", *GREY, **photos)
    name, folder = photos.values()
    finetuned = load_recipe(name, [*GREY, "model.pretrained=true"], folder)
    with pytest.raises(UserError, match=r"classifier is for other classes \(now c instead of b\)"):
        loop.train(finetuned, tmp_path / "next", str(tmp_path / "run"))
    fresh = load_recipe(name, [*GREY, "model.pretrained=true", "model.new_head=true"], folder)
    loop.train(fresh, tmp_path / "next", str(tmp_path / "run"))


def comparable(records: list[dict]) -> list[dict]:
    return [{key: r[key] for key in r if key not in VOLATILE} for r in records]


def test_an_evaluation_that_fails_at_the_end_costs_no_weights(tmp_path, photos, monkeypatch):
    """A photo cut off in its pixels, which only decoding finds; another one is replaced."""
    (tmp_path / "data/train/a/2.png").write_bytes(b"not an image")
    overrides = [*GREY, "ema.decay=0.9", "save.every_steps=1", "data.skip_unreadable=1"]
    whole = train(tmp_path / "whole", *overrides, **photos)
    photo = tmp_path / "data/val/b/3.png"
    Image.effect_noise((20, 20), 99).save(tmp_path / "noise.png")
    intact = photo.read_bytes()
    photo.write_bytes((tmp_path / "noise.png").read_bytes()[:200])
    message = r"3.png: cannot be read as an image .*; replace or remove it \(data.skip_unreadable"
    for _ in range(2):  # the second finds a checkpoint of the last step, and evaluates again
        with pytest.raises(UserError, match=message):
            train(tmp_path / "run", *overrides, **photos)
        assert state(tmp_path / "run", 2) == state(tmp_path / "whole", 2)
    assert "top1" not in log.read_metrics(tmp_path / "run")[-1]
    photo.write_bytes(intact)
    assert comparable(train(tmp_path / "run", *overrides, **photos)) == comparable(whole)
    ours, theirs = (
        json.loads((tmp_path / run / "summary.json").read_text()) for run in ("run", "whole")
    )
    assert all(ours[key] == theirs[key] for key in ("final", "best", "steps", "exit"))


def scripted(monkeypatch, scores: dict[int, float]) -> None:
    """Evaluations with these scores by step."""
    monkeypatch.setattr(loop.Run, "_metrics", lambda self, due: {"top1": scores[self.step]})


def test_the_best_weights_survive_a_kill_and_a_newer_best_that_was_lost(tmp_path, monkeypatch):
    overrides = short(7, "data.workers=0", "ema.decay=0.9", "evaluate.every_steps=1")
    overrides += ["save.every_steps=3", "save.keep=1", "save.best=true"]
    folder = tmp_path / "run" / "checkpoints"
    scripted(monkeypatch, {1: 10, 2: 30, 3: 20, 4: 25, 5: 40, 6: 35, 7: 40})
    train_until(5, monkeypatch, tmp_path / "run", *overrides)  # after evaluating step 5
    assert checkpoint.steps(folder) == [3]
    assert checkpoint.steps(folder, checkpoint.BEST) == [2, 5], "2 in case of a kill"
    assert find_weights(str(tmp_path / "run"), best=True).step == 5
    scripted(monkeypatch, {4: 25, 5: 15, 6: 15, 7: 25})  # as on a machine that sums otherwise
    train_until(5, monkeypatch, tmp_path / "run", *overrides)
    assert checkpoint.steps(folder, checkpoint.BEST) == [2]
    scripted(monkeypatch, {4: 25, 5: 15, 6: 45, 7: 25})
    train(tmp_path / "run", *overrides)
    assert checkpoint.steps(folder) == [7] and checkpoint.steps(folder, checkpoint.BEST) == [6]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["best"]["step"], summary["final"]["step"]) == (6, 7)
    train(tmp_path / "all", *short(7, "data.workers=0", "ema.decay=0.9", "save.every_steps=6"))
    for ema, name in ((False, "model"), (True, "ema")):
        found = find_weights(str(tmp_path / "run"), ema=ema, best=True)
        assert same(load_file(found.weights), weights(tmp_path / "all", 6, name))
    quickstart = load_recipe("quickstart")
    net = build_model(quickstart)
    origin = start.load_start_weights(net, quickstart, str(tmp_path / "run"), best=True)
    assert "run, the best of step 6, its classifier too" in origin
    assert same(net.state_dict(), weights(tmp_path / "all", 6))
    trained = load_trained(str(tmp_path / "run"), Choice(best=True))
    assert trained.step == 6 and same(trained.net.state_dict(), net.state_dict())
    chosen = "after step 6 (chosen as the best on its validation images)"
    assert chosen in model_card(trained, False, "local-dir:best")


def test_milestones_stay_while_checkpoints_go_and_change_no_weights(tmp_path, monkeypatch):
    """Epochs in save.milestones; found by their step as a checkpoint is; resuming writes them."""
    steps = short(6, "save.every_steps=1", "save.keep=1", "data.workers=0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    end = train(whole, *steps)[-1]
    step = end["epoch"] / end["step"]  # in epochs
    wanted = [*steps, f"save.milestones=[{2 * step}, {5 * step}]"]
    train_until(4, monkeypatch, cut, *wanted)
    assert checkpoint.steps(cut / "checkpoints", checkpoint.MILESTONE) == [2]
    train(cut, *wanted)
    assert checkpoint.steps(cut / "checkpoints") == [6]
    assert checkpoint.steps(cut / "checkpoints", checkpoint.MILESTONE) == [2, 5]
    assert same(weights(whole, 6), weights(cut, 6))
    found = find_weights(str(cut), step=2)
    assert found.step == 2 and not same(load_file(found.weights), weights(cut, 6))
    with pytest.raises(UserError, match="it has 2, 5, 6"):
        find_weights(str(cut), step=3)
