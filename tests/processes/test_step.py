"""The step: several lanes in one forward, drop path on a subset, compilation, precision, pace and profile."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from deit_tract import tasks
from deit_tract.data.transforms import augment, colour, fast
from deit_tract.engine.batch_norm import RunningStatistics
from deit_tract.engine.replicas import Replicas
from deit_tract.models import drop_path
from deit_tract.optim.build import build_optimizer
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tract import gram
from deit_tract.train import log, loop
from deit_tract.train.meter import Meter
from tests.helpers.processes import run, sets
from tests.helpers.runs import losses, short, train
from tests.helpers.step import DRAWS, apart, weights


def test_two_processes_with_uneven_shares(tmp_path):
    """Three lanes: two in one forward here, one there; against one process and one lane at a time."""
    overrides = short(5, *DRAWS, "batch.size=48", "batch.lanes=3")
    expected = losses(train(tmp_path / "one", *overrides))
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path / "two"), *sets(overrides)]
    code, _, err = run(*arguments, "--set", "batch.lanes_per_forward=2", processes=2)
    assert code == 0, err
    assert losses(log.read_metrics(tmp_path / "two")) == pytest.approx(expected, abs=1e-6)
    assert apart(weights(tmp_path / "one", 5), weights(tmp_path / "two", 5)) < 1e-5


def test_two_compiled_processes(tmp_path):
    """With drop path on a subset, in bf16."""
    overrides = short(
        3, "model.args.depth=1", "batch.size=32", "batch.lanes=2", "precision.autocast=bf16"
    )
    overrides += ["model.drop_path=0.2", "model.drop_path_mode=subset"]
    expected = losses(train(tmp_path / "one", *overrides))
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path / "two"), *sets(overrides)]
    code, _, err = run(*arguments, "--set", "precision.compile=true", processes=2, timeout=600)
    assert code == 0, err
    assert losses(log.read_metrics(tmp_path / "two")) == pytest.approx(expected, abs=5e-3)
    assert weights(tmp_path / "two", 3).keys() == weights(tmp_path / "one", 3).keys()


# ---- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_path_mode", ["mask", "subset"])
def test_nothing_of_a_step_reads_from_a_gpu(monkeypatch, drop_path_mode):
    """On tensors that pose as a GPU's and have no numbers: to look at one raises.

    Torch's own backward pass and timm's average are left out, which take a GPU; what TrAct adds to the one is called.
    """
    device, mode = torch.device("cuda"), FakeTensorMode(allow_non_fake_inputs=True)

    def posed(tensor, device):
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    def backward(loss):
        for p in task.bare.parameters():
            p.grad = torch.empty_like(p)
        images = torch.empty(4, 3, 224, 224, device=device)
        rule, g = (
            layer._rule(images)[1],
            torch.empty(4, 384, 14, 14, dtype=torch.bfloat16, device=device),
        )
        raw = gram.raw_gradient(g, images, rule, layer.weight.shape)
        layer.weight.grad = gram.right_solve(raw, gram.gram_factor(images, rule))

    monkeypatch.setattr("deit_tract.tasks.classify.seed_generators", lambda seed, device: None)
    for module in (drop_path, colour, augment):
        monkeypatch.setattr(module, "send", posed)
    settings = [
        "model.args.depth=2",
        "model.drop_path=0.2",
        f"model.drop_path_mode={drop_path_mode}",
    ]
    recipe = load_recipe(
        "vit_s_800ep_tract", ["data.name=synthetic", "batch.size=8", "batch.lanes=2", *settings]
    )
    task, transform = tasks.build(recipe), fast.FastTransform(recipe, defer=True)
    task.bare.train()
    [layer] = task.tract_layers
    draws = torch.stack([fast.draw(transform.colours) for _ in range(4)])
    accelerator = SimpleNamespace(
        prepare=lambda *given: given, backward=backward, unscale_gradients=lambda optimizer: None, scaler=None,
        num_processes=1, is_main_process=True, device=device,
    )  # fmt: skip
    with mode:
        for module in task.bare.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(torch.empty(p.shape, device=device)))
        pixels = [torch.empty(4, 224, 224, 3, dtype=torch.uint8, device=device) for _ in range(2)]
        with pytest.raises(DataDependentOutputException):
            pixels[0].sum().item()
        labels = torch.empty(4, dtype=torch.long, device=device)
        replicas = Replicas(
            accelerator, recipe, task.bare, build_optimizer(recipe.optim, task.bare)
        )
    batches = [[transform.finish(images, draws), labels] for images in pixels]
    run = SimpleNamespace(
        recipe=recipe, task=task, engine=replicas, forwards=[range(2)], ema=None, lr=lambda step: 1e-3,
        stream=SimpleNamespace(lane_seed=lambda step, lane: lane), statistics=RunningStatistics(task.bare, 2),
    )  # fmt: skip
    with mode, torch.autocast("cuda", torch.bfloat16):
        loss, norm = loop.Run.optimizer_step(run, 0, iter(batches))
        Meter(accelerator, 0, None).add(1, loss, norm)
    assert loss.is_cuda and norm.is_cuda
