"""The transfer recipes: the published epochs in steps, both arms alike, evaluation and saving that
cost little.
"""

import pytest
import torch

from deit_tract.models.build import build_model
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe import published
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import load_recipe

SETS = ("cifar10", "cifar100", "flowers102", "cars")
STEPS = {
    "cifar10": (65, 13_000),
    "cifar100": (65, 13_000),
    "flowers102": (2, 10_000),
    "cars": (10, 10_000),
}
EPOCHS = {"cifar10": 200, "cifar100": 200, "flowers102": 5000, "cars": 1000}  # TrAct, Section 4.3
BASES = [f"transfer_{name}_vit_s{suffix}" for name in SETS for suffix in ("", "_sgd")]


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of the recipes with a model one block deep, which changes no step."""
    folder = tmp_path_factory.mktemp("plan")
    return {
        name: make_plan(load_recipe(name, ["model.args.depth=1"]), folder / name) for name in BASES
    }


@pytest.mark.parametrize("name", BASES)
def test_steps_of_the_published_epochs(plans, name):
    made, which = plans[name], name.split("_")[1]
    per_epoch, total = STEPS[which]
    assert made.recipe.batch.size == 768 and made.recipe.augment.repeats == 3
    assert (made.stream.steps_per_epoch, made.steps) == (per_epoch, total) and total == EPOCHS[
        which
    ] * per_epoch
    assert f"{per_epoch} steps of 768 = " in show_plan(made)
    assert f"run            {EPOCHS[which]:,} epochs, {total:,} steps".replace(
        ",", ""
    ) in show_plan(made).replace(",", "")


@pytest.mark.parametrize("name", BASES)
def test_the_learning_rate_warms_up_and_falls(plans, name):
    rates = [rate for _, _, rate in plans[name].rates]
    settings = plans[name].recipe
    assert rates[0] == settings.schedule.warmup_lr and max(rates) <= settings.optim.lr
    assert (
        0 <= rates[-1] - settings.schedule.min_lr < 1e-3 * settings.optim.lr
        and rates[-1] < rates[-2] < rates[-3]
    )
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert (
        rates[peak] > 0.99 * settings.optim.lr and plans[name].rates[peak][0] <= 6
    )  # after 5 epochs of warm-up


@pytest.mark.parametrize("name", BASES)
def test_evaluation_and_saving_do_not_dominate(plans, name):
    made = plans[name]
    looking = made.evaluations * made.samples[1] * made.cost.forward
    assert made.evaluations >= 10 and looking < 0.02 * made.steps * 768 * made.cost.training
    assert 10 <= made.saves <= 50


@pytest.mark.parametrize("name", BASES)
def test_both_arms_are_equal_but_for_tract_and_held_to_table_4(name):
    plain, tract = load_recipe(name), load_recipe(f"{name}_tract")
    assert differences(plain, tract) == ["model.tract: null -> 0.1"]
    assert plain.model.pretrained and plain.model.new_head and plain.ema.decay is None
    baseline, ours = published.find(plain.expect.published).results
    assert (plain.expect.top1, tract.expect.top1) == (baseline["top1"], ours["top1"])
    entry = "_".join(name.split("_")[:2])
    assert plain.expect.published == f"{entry}/plain"
    assert tract.expect.published == f"{entry}/tract"


@pytest.mark.parametrize("name", SETS)
def test_sgd_changes_optimizer_floor_drop_path_and_erasing_alone(name):
    base = f"transfer_{name}_vit_s"
    changed = {
        line.split(":")[0] for line in differences(load_recipe(base), load_recipe(f"{base}_sgd"))
    }
    erasing = {"augment.random_erase"} if name in ("flowers102", "cars") else set()
    assert changed == erasing | {
        "model.drop_path",
        "optim.lr",
        "optim.name",
        "optim.nesterov",
        "optim.weight_decay",
        "schedule.min_lr",
    }


def test_the_head_is_of_the_sets_classes_and_the_grid_that_of_pretraining():
    for name, classes in zip(SETS, (10, 100, 102, 196), strict=True):
        with torch.device("meta"):
            net = build_model(load_recipe(f"transfer_{name}_vit_s_tract"))
        assert net.head.out_features == classes and net.pos_embed.shape == (1, 196, 384)
