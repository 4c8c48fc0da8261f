"""Training in one process: log, evaluation, EMA, resume to the bit, and a stop at a loss of NaN."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset

from deit_tract.common.errors import UserError
from deit_tract.data.feed import make_feed
from deit_tract.data.sets.load import load_splits
from deit_tract.evaluators.classification import Classification
from deit_tract.models.build import build_model
from deit_tract.optim import lamb
from deit_tract.recipe import launch
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Evaluate
from deit_tract.tasks import build_task
from deit_tract.tasks.classify import Classify
from deit_tract.train import loop, screen
from tests.helpers.images import write_grey_photos
from tests.helpers.loop import same, weights
from tests.helpers.runs import losses, short, train, train_until


def test_a_run_leaves_what_the_readme_says(tmp_path):
    records = train(
        tmp_path, *short(6, "evaluate.every_steps=3", "save.every_steps=2", "ema.decay=0.9")
    )
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "top1" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in evaluations] == [3, 6]
    assert steps[0]["epoch"] == 1 / 20 and steps[0]["lr"] == 1e-6
    assert {"images_per_s", "data_wait", "grad_norm"} <= steps[0].keys() and 0 <= steps[0][
        "data_wait"
    ] <= 1
    assert {"top1", "top5", "val_loss", "ema_top1", "ema_top5", "ema_val_loss"} <= evaluations[
        0
    ].keys()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (
        summary["final"] == evaluations[1]
        and summary["exit"] == "finished"
        and summary["steps"] == 6
    )
    assert summary["best"] == max(evaluations, key=lambda record: record["top1"])
    assert summary["seconds"] == pytest.approx(sum(summary["seconds_by_part"].values()), abs=0.01)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (
        environment["packages"]["torch"] == torch.__version__.split("+")[0]
        and environment["processes"] == 1
    )
    assert differences(load_recipe(str(tmp_path / "recipe.yaml")), load_recipe("quickstart")) != []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000006",
    ]


def test_a_checkpoint_is_plain_timm_weights(tmp_path):
    train(tmp_path, *short(2))
    plain = build_model(load_recipe("quickstart_baseline"))
    plain.load_state_dict(weights(tmp_path, 2))


def test_the_logged_loss_is_the_mean_since_the_line_before(tmp_path):
    each = losses(train(tmp_path / "a", *short(6)))
    summed = losses(train(tmp_path / "b", *short(6), "log.every_steps=3"))
    assert summed == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], abs=1e-6)


def test_the_update_is_that_of_the_mean_over_lanes(tmp_path):
    """One SGD step against the gradient written out: the mean of the lanes' losses, each with its
    own draws.
    """
    plain = ("momentum=0", "lr=0.5", "weight_decay=0", "clip_grad=null")
    overrides = short(
        1, "optim.name=sgd", *(f"optim.{setting}" for setting in plain), "model.tract=null"
    )
    overrides += ["schedule.name=constant", "schedule.warmup_lr=0.5"]
    train(tmp_path, *overrides)
    recipe = load_recipe("quickstart", overrides)
    task = build_task(recipe, load_splits(recipe.data, recipe.detect).train)
    stream = loop.Stream(1437, 4, 16, 3, 0)
    task.model.train()
    total = 0.0
    for lane in range(4):
        feed = make_feed(task.source, stream, [lane], 0, torch.device("cpu"))
        batches = list(feed.batches([0]))
        total = total + task.loss(task.model, batches, [stream.lane_seed(0, lane)])["loss"]
    (total / 4).backward()
    saved = weights(tmp_path, 1)
    for name, p in task.model.named_parameters():
        torch.testing.assert_close(saved[name], p.detach() - 0.5 * p.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gram", ["lane", "batch"])
def test_the_batchs_gram_matrix_does_not_depend_on_lanes_and_a_lanes_does(tmp_path, gram):
    """A batch in one lane and in 32, with nothing else that a lane draws: the first layer's weights
    afterwards.
    """
    plain = (
        "mix.prob=0",
        "model.drop_path=0",
        "model.args.init_values=null",
        f"model.tract_gram={gram}",
    )
    sgd = ("optim.name=sgd", "optim.lr=0.3", "schedule.warmup_lr=0.3", "model.tract=1e-3")
    moved = []
    for lanes in (1, 32):
        train(tmp_path / str(lanes), *short(8, *plain, *sgd, f"batch.lanes={lanes}"))
        start = build_model(load_recipe("quickstart", plain)).patch_embed.proj.weight
        moved.append(weights(tmp_path / str(lanes), 8)["patch_embed.proj.weight"] - start)
    difference = ((moved[0] - moved[1]).norm() / moved[0].norm()).item()
    assert difference < 1e-4 if gram == "batch" else difference > 1e-2, difference


def test_ema_follows_its_definition(tmp_path):
    train(tmp_path, *short(3, "save.every_steps=1", "save.keep=3", "ema.decay=0.75"))
    start = build_model(load_recipe("quickstart")).state_dict()
    average = start["head.weight"].clone()
    for step in (1, 2, 3):
        average = 0.75 * average + 0.25 * weights(tmp_path, step)["head.weight"]
    torch.testing.assert_close(weights(tmp_path, 3, "ema")["head.weight"], average)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw", "sgd"])
def test_workers_change_nothing(tmp_path, optimizer):
    overrides = short(4, f"optim.name={optimizer}", "optim.lr=1e-3")
    runs = [train(tmp_path / str(n), *overrides, f"data.workers={n}") for n in (0, 2)]
    assert losses(runs[0]) == losses(runs[1])
    assert same(weights(tmp_path / "0", 4), weights(tmp_path / "2", 4))


def test_seeds_change_everything(tmp_path):
    assert losses(train(tmp_path / "a", *short(2))) != losses(
        train(tmp_path / "b", *short(2, "seed=1"))
    )


def test_bf16_trains_close_to_float32(tmp_path):
    exact = losses(train(tmp_path / "a", *short(5)))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    half = losses(train(tmp_path / "b", *short(5, "precision.autocast=bf16")))
    assert half != exact and half == pytest.approx(exact, abs=2e-2)


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    first = train(tmp_path, *short(3))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert train(tmp_path, *short(3)) == first
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert json.loads((tmp_path / "summary.json").read_text())["final"]["step"] == 3


def test_another_recipe_in_the_same_folder_is_refused_with_its_keys(tmp_path):
    train(tmp_path, *short(2))
    with pytest.raises(
        UserError, match=r"optim.lr: 0.008 -> 0.1; seed: 0 -> 3.*choose another --output"
    ):
        train(tmp_path, *short(2, "optim.lr=0.1", "seed=3"))
    train(tmp_path, *short(2, "data.workers=1", "save.keep=1"))


@pytest.mark.parametrize("source", ["run", "file"])
def test_fine_tuning_starts_from_the_given_weights(tmp_path, source):
    train(tmp_path / "a", *short(2))
    path = tmp_path / "a" / "checkpoints" / "step_00000002" / "model.safetensors"
    recipe = load_recipe(
        "quickstart", short(1, "optim.lr=1e-9", "schedule.warmup_lr=0", "schedule.min_lr=0")
    )
    loop.train(recipe, tmp_path / "b", str(tmp_path / "a") if source == "run" else str(path))
    for key, value in weights(tmp_path / "b", 1).items():
        torch.testing.assert_close(value, load_file(path)[key])


def test_fine_tuning_goes_on_without_the_weights_it_started_from(tmp_path):
    train(tmp_path / "a", *short(1))
    start = tmp_path / "start.safetensors"
    (tmp_path / "a" / "checkpoints" / "step_00000001" / "model.safetensors").rename(start)
    recipe = load_recipe("quickstart", short(2))
    loop.train(recipe, tmp_path / "b", str(start))
    before = weights(tmp_path / "b", 2)
    start.unlink()
    loop.train(recipe, tmp_path / "b", str(start))
    assert same(before, weights(tmp_path / "b", 2))
    with pytest.raises(UserError, match="no such file or folder"):
        loop.train(recipe, tmp_path / "c", str(start))


def test_a_run_without_a_checkpoint_is_no_start(tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="this run has no checkpoint yet"):
        loop.train(load_recipe("quickstart", short(1)), tmp_path / "b", str(tmp_path / "a"))


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_checkpoint(
    tmp_path, monkeypatch
):
    real = Classify.loss
    calls = []

    def poisoned(self, model, batch, seed):
        calls.append(seed)
        factor = math.nan if len(calls) == 4 * 6 + 2 else 1.0  # lane 1 of the seventh step
        return {name: value * factor for name, value in real(self, model, batch, seed).items()}

    monkeypatch.setattr(Classify, "loss", poisoned)
    with pytest.raises(UserError, match=r"step 7: loss or gradient norm is not finite"):
        train(tmp_path, *short(20, "log.every_steps=10", "save.every_steps=3"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000003",
        "step_00000006",
    ]
    assert all(value.isfinite().all() for value in weights(tmp_path, 6).values())
    assert "step 7" in json.loads((tmp_path / "summary.json").read_text())["exit"]


def test_nothing_is_read_from_the_device_between_log_points(tmp_path, monkeypatch):
    monkeypatch.setattr(lamb, "ONE_BY_ONE", set())  # as on a GPU
    monkeypatch.setattr(screen, "FIRST_LINE", math.inf)  # the first line reads a loss
    reads = []
    for name in ("item", "__bool__", "__float__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, real=real: reads.append(1) or real(self)
        )

    def count(steps: int) -> int:
        """Transforms run in a worker here; on a CPU TrAct looks at its input and LAMB at norms."""
        reads.clear()
        overrides = ("model.tract=null", "data.workers=1")
        train(tmp_path / str(steps), *short(steps, f"log.every_steps={steps}", *overrides))
        return len(reads)

    assert count(6) == count(12) > 0


def test_tensorboard_when_asked(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path, *short(2, "log.trackers=[tensorboard]"))
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_an_absent_tracker_is_refused(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{tracker} is not installed; pip install {tracker}"):
        train(tmp_path, *short(2, f"log.trackers=[{tracker}]"))


def test_bf16_on_a_gpu_without_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(UserError, match=r"precision.autocast: Tesla V100 has no bf16; use fp16"):
        train(tmp_path, *short(2, "precision.autocast=bf16"))


@pytest.mark.parametrize("engine", ["FSDP", "MEGATRON_LM"])
def test_a_launch_with_another_engine_is_refused(tmp_path, monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(UserError, match=f"launch: {engine} is not supported"):
        train(tmp_path, *short(2))


def test_launchers_gradient_accumulation_is_not_ours(tmp_path, monkeypatch):
    """Accelerate would divide the loss by what its launcher's option says."""
    expected = losses(train(tmp_path / "a", *short(3)))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert losses(train(tmp_path / "b", *short(3))) == expected
    assert same(weights(tmp_path / "a", 3), weights(tmp_path / "b", 3))


def test_resuming_between_log_lines_keeps_their_mean(tmp_path, monkeypatch):
    overrides = short(8, "log.every_steps=8", "save.every_steps=5")
    whole = losses(train(tmp_path / "a", *overrides))
    train_until(6, monkeypatch, tmp_path / "b", *overrides)
    assert "KeyboardInterrupt" in json.loads((tmp_path / "b" / "summary.json").read_text())["exit"]
    assert losses(train(tmp_path / "b", *overrides)) == whole


def test_a_truncated_checkpoint_falls_back_and_ends_the_same(tmp_path, capsys):
    overrides = short(9, "save.every_steps=3", "save.keep=3")
    train(tmp_path, *overrides)
    final = weights(tmp_path, 9)
    path = tmp_path / "checkpoints" / "step_00000009" / "optimizer.pt"
    os.truncate(path, path.stat().st_size // 2)
    train(tmp_path, *overrides)
    assert "step_00000009 is not intact" in capsys.readouterr().out
    assert same(final, weights(tmp_path, 9))


FOLDER = ["data.workers=2", "batch.size=32", "batch.lanes=2", "log.every_steps=10"]


def test_real_photos_through_the_folder_reader(tmp_path, real_images):
    """Tiny ImageNet's subset with 3-Augment and all, 100 steps of a shallow model."""
    data = real_images("tinyimagenet_sub.tar.gz")
    root = next(path.parent for path in data.rglob("train") if path.is_dir())
    overrides = [
        *FOLDER,
        "schedule.steps=100",
        "schedule.warmup_steps=10",
        "evaluate.every_epochs=1000",
        "model.args.depth=2",
    ]
    records = train(tmp_path, *overrides, recipe="folder_vit_ti", data_dir=str(root))
    assert len(losses(records)) == 10 and 0.1 < losses(records)[-1] < 0.6 * losses(records)[0] < 0.5
    assert 0 <= records[-1]["top1"] <= records[-1]["top5"] <= 100


def test_an_unreadable_photo_ends_the_run_with_its_path(tmp_path):
    write_grey_photos(tmp_path / "data")
    bad = tmp_path / "data" / "train" / "b" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    overrides = [
        *FOLDER,
        "schedule.steps=9",
        "schedule.warmup_steps=1",
        "data.classes=2",
        "batch.size=8",
        "augment.repeats=1",
    ]
    with pytest.raises(UserError, match=r"train/b/3.png: cannot be read as an image"):
        train(tmp_path / "run", *overrides, recipe="folder_vit_ti", data_dir=str(tmp_path / "data"))


def test_a_run_may_have_several_evaluators_each_with_its_own_cadence(tmp_path, monkeypatch, capsys):
    """The first decides what is best; the metrics of the others carry their names."""

    def two(recipe, images):
        first = Classification.of_recipe(recipe, images)
        second = Classification.of_recipe(recipe, Subset(images, range(50)))
        second.name = "fifty"
        second.settings = Evaluate(every_steps=1)
        return [first, second]

    monkeypatch.setattr(loop, "build_evaluators", two)
    records = train(tmp_path, *short(4, "evaluate.every_steps=2", "ema.decay=0.9"))
    second = {record["step"] for record in records if "fifty_top1" in record}
    assert second == {1, 2, 3, 4}
    assert {record["step"] for record in records if "top1" in record} == {2, 4}
    assert {"ema_top1", "fifty_top5", "fifty_ema_top1"} <= records[-1].keys()
    assert records[-1]["fifty_val_loss"] != records[-1]["val_loss"]
    assert "step 3/4: fifty_top1" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["final"] == records[-1] and "top1" in summary["best"]
