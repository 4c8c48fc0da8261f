"""Runs with several lanes in one forward, drop path on a subset, a stated peak, a profile."""

import gzip
import json

import pytest

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.plan import cost
from deit_tract.recipe.launch import check_folder
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import log
from tests.helpers.runs import losses, short, train
from tests.helpers.step import DRAWS, apart, weights


def test_a_run_with_lanes_together_ends_the_same_and_may_go_on_one_by_one(tmp_path):
    expected = train(tmp_path / "1", *short(6, *DRAWS))
    together = (*DRAWS, "batch.lanes_per_forward=4")
    train(tmp_path / "4", *short(6, *together, "save.every_steps=3", "save.keep=9"))
    assert losses(log.read_metrics(tmp_path / "4")) == pytest.approx(losses(expected), abs=1e-6)
    assert (
        apart(weights(tmp_path / "1", 6), weights(tmp_path / "4", 6)) < 1e-5
    )  # six steps of LAMB at lr 8e-3
    (tmp_path / "4" / "checkpoints" / "step_00000006").rename(tmp_path / "away")
    train(tmp_path / "4", *short(6, *DRAWS, "save.every_steps=3", "save.keep=9"))
    assert apart(weights(tmp_path / "1", 6), weights(tmp_path / "4", 6)) < 1e-5


def test_a_subset_run_resumes_to_the_bit(tmp_path):
    overrides = short(
        4, "model.drop_path=0.3", "model.drop_path_mode=subset", "save.every_steps=2", "save.keep=9"
    )
    train(tmp_path, *overrides)
    final = weights(tmp_path, 4)
    (tmp_path / "checkpoints" / "step_00000004").rename(tmp_path / "away")
    train(tmp_path, *overrides)
    assert apart(final, weights(tmp_path, 4)) == 0.0


def test_a_runs_precision_stays_what_it_was(tmp_path):
    train(tmp_path, *short(1, "precision.autocast=auto"))
    assert load_recipe(str(tmp_path / "recipe.yaml")).precision.autocast == "bf16"
    check_folder(tmp_path, load_recipe("quickstart", short(1, "precision.autocast=bf16")))
    with pytest.raises(UserError, match=r'precision.autocast: "bf16" -> "fp16"'):
        check_folder(tmp_path, load_recipe("quickstart", short(1, "precision.autocast=fp16")))


# ---- pace and profile ----------------------------------------------------------------------------


def test_mfu_follows_from_images_per_second_and_a_stated_peak(tmp_path, capsys):
    records = train(tmp_path / "a", *short(2, "log.peak_tflops=0.05"))
    recipe = load_recipe("quickstart")
    flops = cost.measure(recipe, build_model(recipe)).training
    for record in records[:2]:
        assert record["mfu"] == pytest.approx(record["images_per_s"] * flops / 0.05e12)
        assert 0.05 < record["memory_gib"] < 50 and 0 <= record["data_wait"] <= 1
    out = capsys.readouterr().out
    assert "MFU" in out and "GiB" in out
    assert train(tmp_path / "b", *short(1))[0]["mfu"] is None, "a CPU's peak is not known"


def test_a_profile_of_three_steps_lies_in_the_runs_folder(tmp_path, capsys):
    train(tmp_path / "a", *short(6, "log.profile=2"))
    with gzip.open(tmp_path / "a" / "profile_step_2.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name", "").startswith("Optimizer.step") for event in events) == 3
    assert any("scaled_dot_product" in event.get("name", "") for event in events)
    train(tmp_path / "b", *short(2, "log.profile=2"))
    assert (tmp_path / "b" / "profile_step_2.json.gz").exists(), "a run that ends within the three"
    train(tmp_path / "c", *short(2, "log.profile=3"))
    assert (
        "log.profile: step 3 is not among those to come; no trace is written"
        in capsys.readouterr().out
    )
