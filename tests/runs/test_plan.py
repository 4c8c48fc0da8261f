"""The plan against runs: sizes of checkpoints, and the mistakes that a run finds."""

import pytest

from deit_tract.common.errors import UserError
from deit_tract.plan.plan import make_plan, shutil
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.plan import mistakes
from tests.helpers.runs import short, train


def test_checkpoints_are_as_many_and_as_large_as_saved(tmp_path):
    overrides = short(
        5, "ema.decay=0.9", "save.every_epochs=null", "save.every_steps=2", "save.keep=3"
    )
    made = make_plan(load_recipe("quickstart", overrides), tmp_path / "run")
    train(tmp_path / "run", *overrides)
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    size = sum(file.stat().st_size for file in kept[-1].iterdir())
    assert made.saves == len(kept) == 3 and made.kept == 3 * made.checkpoint
    assert made.checkpoint == pytest.approx(size, rel=0.03)
    once = make_plan(
        load_recipe("quickstart", [*overrides, "save.every_steps=null"]), tmp_path / "other"
    )
    assert once.saves == 1 and once.kept == once.checkpoint


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.name=vit_tinny"], "model.name: timm has no model 'vit_tinny'; did you mean "),
        (["model.args.nonsense=1"], "model.args: timm cannot build vit_tiny_patch16_224 ("),
        (
            ["batch.size=4096"],
            "batch.size: 1437 images give a lane 320 of the 1024 views of one step; use at",
        ),
        (
            ["schedule.epochs=0.01", "schedule.warmup_epochs=0"],
            "schedule.epochs: 0.01 epochs of 20 steps are none",
        ),
        (["schedule.steps=50"], "schedule: warm-up of 100 steps in a run of 50; shorten it"),
        (
            ["model.args.proj_drop_rate=0.1", "batch.lanes_per_forward=2"],
            "batch.lanes_per_forward: blocks.0.attn.proj_drop (Dropout) depends on the other",
        ),
        (["expect.published=nothing"], "expect.published: nothing is published under 'nothing'; "),
    ],
)
def test_a_mistake_is_the_runs_own(tmp_path, overrides, line):
    recipe = load_recipe("quickstart", overrides)
    assert [found.startswith(line) for found in mistakes(recipe, tmp_path)] == [True]
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", *overrides)
    assert str(error.value).startswith(line)


def test_the_folder_of_another_recipe_and_a_full_disk(tmp_path, monkeypatch):
    train(tmp_path / "run", *short(2))
    make_plan(load_recipe("quickstart", short(2)), tmp_path / "run")
    recipe = load_recipe("quickstart", short(2, "seed=1"))
    line = (
        "holds a run of another recipe (seed: 0 -> 1); "
        "choose another --output, or put the values back"
    )
    noted = make_plan(recipe, tmp_path / "run").notes
    assert f"starting would be refused: {tmp_path}/run: {line}" in noted
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert mistakes(recipe, tmp_path / "new")[0].startswith(
        f"{tmp_path}/new: 1.00 MiB are free, 2 + 1 checkpoints need"
    )
