"""TrAct against an independent float64 statement of its equation, the paper's lemmas, and what it must leave alone."""

import pytest
import torch
from torch import nn

from deit_tract import tract
from deit_tract.tract import TrAct
from tests.helpers.tract import LAYERS, error, expected

# ---- other machinery -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["3x3", "7x7/2", "patches", "few rows, patches", "groups", "linear", "linear, few rows"]
)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(name, backend):
    make, shape = LAYERS[name]
    torch._dynamo.reset()
    layer, x = TrAct(make()), torch.randn(shape)
    g = torch.randn(layer(x).shape)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    compiled(x).backward(g)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


def test_compile_gram_of_the_batch():
    torch._dynamo.reset()
    layer, x = TrAct(nn.Conv2d(3, 8, 3), gram="batch"), torch.randn(4, 3, 9, 9)
    compiled, g = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(4, 8, 7, 7)
    for lane in range(2):
        compiled(x[lane::2]).backward(g[lane::2])
    tract.finish_step(layer)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5
