"""Trackers: what Weights & Biases is given, when a run starts and when it resumes."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from deit_tract.common.errors import UserError
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train.trackers import WandB

RECIPE = load_recipe("quickstart", ["log.trackers=[wandb]"])


@pytest.fixture
def wandb(monkeypatch):
    """In place of the package: keeps what it is told."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.told = []

    def init(**options):
        def log(numbers, step):
            module.told.append((step, numbers))

        module.options = options
        return SimpleNamespace(offline=True, log=log, finish=module.told.append)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_resumed_run_is_the_same_run(tmp_path, wandb):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    first = WandB(RECIPE, tmp_path / "mine", 0)
    options = wandb.options
    assert options["resume"] == "allow" and options["name"] == "mine"
    assert options["config"]["optim"]["lr"] == RECIPE.optim.lr
    first.log({"loss": 0.5}, 10)
    WandB(RECIPE, tmp_path / "mine", 10)
    assert wandb.options["id"] == options["id"] and wandb.told == [(10, {"loss": 0.5})]
    WandB(RECIPE, tmp_path / "other", 0)
    assert wandb.options["id"] != options["id"], "another run"


def test_what_the_package_refuses_is_one_line(tmp_path, wandb):
    def refuse(**options):
        raise RuntimeError("api_key not configured\n(no-tty)")

    wandb.init = refuse
    with pytest.raises(UserError, match=r"log\.trackers: wandb: api_key not configured \(no-tty\)"):
        WandB(RECIPE, tmp_path, 0)
