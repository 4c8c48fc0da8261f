"""Evaluation: every sample once, in batches of any size, by the weights that were asked for."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from deit_tract.data.sets.load import load_splits
from deit_tract.evaluators import build_evaluators
from deit_tract.evaluators.measures import Samples
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks import build_task
from deit_tract.train.evaluate import evaluate, in_order


def digits(*overrides: str):
    """An untrained model and its evaluator."""
    recipe = load_recipe("quickstart", overrides)
    data = load_splits(recipe.data, recipe.detect)
    [evaluator] = build_evaluators(recipe, data.val)
    return build_task(recipe, data.train).model, evaluator


@pytest.mark.parametrize("size", [1, 7, 360, 1000])
def test_batches_do_not_matter(size):
    model, evaluator = digits(f"evaluate.batch_size={size}")
    data, transform, _ = evaluator.source
    images = torch.stack([transform(data[i][0]) for i in range(360)])
    labels = torch.tensor([data[i][1] for i in range(360)])
    best = model.eval()(images).argmax(1)
    model.train()
    evaluator.keep = True
    metrics = evaluate(evaluator, model, Accelerator(cpu=True), None)
    right = (best == labels).sum().item()
    assert metrics["top1"] == pytest.approx(100 * right / 360) and model.training
    assert evaluator.samples.labels.tolist() == labels.tolist()
    assert (evaluator.samples.best[:, 0] == best.numpy()).mean() > 0.99


def test_a_lost_sample_is_noticed(monkeypatch):
    model, evaluator = digits()
    measure = evaluator.measure

    def losing(model, batch):
        return measure(model, {name: tensor[1:] for name, tensor in batch.items()})

    monkeypatch.setattr(evaluator, "measure", losing)
    with pytest.raises(AssertionError, match="of 360 samples"):
        evaluate(evaluator, model, Accelerator(cpu=True), None)


def test_records_of_all_processes_come_in_the_sets_order():
    samples = Samples(np.arange(7), np.arange(14).reshape(7, 2), np.arange(7) / 7)
    rows = list(zip(*samples, strict=True))
    for processes in (1, 2, 3, 7, 9):  # of nine, two have none
        ordered = in_order([rows[rank::processes] for rank in range(processes)])
        columns = map(np.array, zip(*ordered, strict=True))
        assert all(map(np.array_equal, columns, samples))
