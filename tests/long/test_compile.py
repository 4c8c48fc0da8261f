"""Compiled with inductor: layers, a run, and two processes."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from deit_tract.models import elastic
from deit_tract.models.token_drop import TokenDrop, draw_tokens, set_tokens
from deit_tract.train import log
from tests.helpers.elastic import small
from tests.helpers.processes import run, sets
from tests.helpers.runs import losses, short, train
from tests.helpers.step import apart, weights
from tests.helpers.tract import assert_compiled_is_equal


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


def test_a_compiled_run_is_the_same_up_to_rounding_and_its_checkpoint_plain(tmp_path):
    """Compiled once for training, not again for new masks nor for evaluation; goes on without
    compilation.
    """
    overrides = short(4, "model.drop_path=0.2", "model.args.depth=1", "save.every_steps=3")
    overrides += ["save.keep=9", "evaluate.every_steps=2", "batch.size=32", "batch.lanes=2"]
    expected = losses(train(tmp_path / "plain", *overrides))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    assert losses(
        train(tmp_path / "compiled", *overrides, "precision.compile=true")
    ) == pytest.approx(expected, abs=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    plain, compiled = weights(tmp_path / "plain", 4), weights(tmp_path / "compiled", 4)
    assert plain.keys() == compiled.keys() and apart(plain, compiled) < 1e-4
    (tmp_path / "compiled" / "checkpoints" / "step_00000004").rename(tmp_path / "away")
    train(tmp_path / "compiled", *overrides)
    assert apart(compiled, weights(tmp_path / "compiled", 4)) < 1e-4


@pytest.mark.parametrize(
    "name", ["3x3", "7x7/2", "patches", "few rows, patches", "groups", "linear, few rows"]
)
def test_compile(name):
    assert_compiled_is_equal(name, "inductor")


ONE_BLOCK = {
    "ViT": {"depth": 1},
    "Swin": {"depths": (1,), "num_heads": (3,)},
    "PVTv2": {"embed_dims": (24,), "depths": (1,), "num_heads": (3,), "sr_ratios": (2,)},
}


@pytest.mark.parametrize("kind", ONE_BLOCK)
def test_a_stage_of_an_elastic_model_is_compiled_once(kind):
    """Not again for other dropped tokens, nor after an evaluation; equal to eager."""
    net = small(kind, **ONE_BLOCK[kind])
    elastic.prepare(net)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    elastic.set_rates(net, 1 / 3, 1 / 4)
    elastic.put_to_sleep(net)
    images = torch.randn(2, 3, 32, 32)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch.compiler.reset()
    compiled = torch.compile(net, backend=backend, dynamic=False, fullgraph=True)
    stages = ((1 / 3, 1 / 4, 6), (2 / 3, 1 / 2, 10), (1.0, 1.0, 16))
    for stage, (heads, hidden, tokens) in enumerate(stages):
        elastic.wake(net, heads, hidden, start)
        if kind == "ViT":
            set_tokens(net, tokens)
        layers = [layer for layer in net.modules() if isinstance(layer, TokenDrop)]
        for step in range(2):
            draw_tokens(layers, 2, step, images.device)
            out = compiled(images)
            assert torch.equal(out, net(images))
            out.sum().backward()
            with elastic.full_rates(net), torch.compiler.set_stance("force_eager"):
                compiled(images)
        assert len(graphs) == stage + 1
