"""TrAct's layers compiled; with inductor all of them are in tests/long."""

import pytest
import torch
from torch import nn

from deit_tract import tract
from deit_tract.tract import TrAct
from tests.helpers.tract import assert_compiled_is_equal, error, expected

NAMES = ["3x3", "7x7/2", "patches", "few rows, patches", "groups", "linear", "linear, few rows"]


@pytest.mark.parametrize(
    ("backend", "name"), [*(("aot_eager", name) for name in NAMES), ("inductor", "linear")]
)
def test_compile(backend, name):
    assert_compiled_is_equal(name, backend)


def test_compile_gram_of_the_batch():
    torch._dynamo.reset()
    layer, x = TrAct(nn.Conv2d(3, 8, 3), gram="batch"), torch.randn(4, 3, 9, 9)
    compiled, g = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(4, 8, 7, 7)
    for lane in range(2):
        compiled(x[lane::2]).backward(g[lane::2])
    tract.finish_step(layer)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


def test_compile_sees_lam_change():
    torch._dynamo.reset()
    layer, x, g = TrAct(nn.Linear(12, 5)), torch.randn(40, 12), torch.randn(40, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lam in (0.1, 0.2, 0.3):
        layer.lam, layer.weight.grad = lam, None
        compiled(x).backward(g)
        assert error(layer.weight.grad, expected(layer, x, g, lam)) <= 2e-5
