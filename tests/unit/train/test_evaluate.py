"""Evaluation: every sample once, in batches of any size, by the weights that were asked for."""

import pytest
import torch
from accelerate import Accelerator

from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks.classify import Classify
from deit_tract.train.evaluate import evaluate


@pytest.mark.parametrize("size", [1, 7, 360, 1000])
def test_batches_do_not_matter(size):
    recipe = load_recipe("quickstart", [f"evaluate.batch_size={size}"])
    task = Classify(recipe)
    images = torch.stack([task.eval_transform(task.val_data[i][0]) for i in range(360)])
    labels = torch.tensor([task.val_data[i][1] for i in range(360)])
    right = (task.bare.eval()(images).argmax(1) == labels).sum().item()
    task.bare.train()
    metrics = evaluate(task, task.bare, recipe, Accelerator(cpu=True))
    assert metrics["top1"] == pytest.approx(100 * right / 360) and task.bare.training


def test_a_lost_sample_is_noticed(monkeypatch):
    recipe = load_recipe("quickstart")
    task = Classify(recipe)
    count = task.evaluate
    monkeypatch.setattr(
        task, "evaluate", lambda model, batch: count(model, [part[1:] for part in batch])
    )
    with pytest.raises(AssertionError, match="of 360 samples"):
        evaluate(task, task.bare, recipe, Accelerator(cpu=True))
