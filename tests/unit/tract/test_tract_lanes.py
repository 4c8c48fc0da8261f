"""TrAct with several lanes in one forward: each lane's gradient is that of a forward of its own."""

import copy

import pytest
import torch
from torch import nn

from deit_tract import tract

LAYERS = {
    "patches": (lambda: nn.Conv2d(3, 8, 4, 4), (12, 3, 16, 16)),
    "overlapping, grouped": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (12, 4, 9, 9)),
    "more rows than columns": (lambda: nn.Linear(5, 3), (24, 2, 5)),
    "fewer rows than columns": (lambda: nn.Linear(40, 3), (12, 40)),
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_lanes_in_one_forward_are_one_by_one(case, lanes):
    torch.manual_seed(0)
    make, shape = LAYERS[case]
    layer = tract.TrAct(make(), 0.2)
    x = torch.randn(shape)
    x *= torch.linspace(0.2, 3, len(x)).view(
        -1, *[1] * (x.dim() - 1)
    )  # lanes of unlike Gram matrices
    together, alone, plain = (
        copy.deepcopy(layer),
        copy.deepcopy(layer),
        tract.remove(copy.deepcopy(layer)),
    )
    g = torch.randn_like(plain(x))
    together.lanes = lanes
    out = together(x.clone().requires_grad_())
    out.backward(g)
    for part, gradient in zip(x.chunk(lanes), g.chunk(lanes), strict=True):
        alone(part).backward(gradient)
    torch.testing.assert_close(out, plain(x), rtol=1e-6, atol=1e-6)
    for a, b in zip(together.parameters(), alone.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-6 * b.grad.norm()
    layer(x).backward(g)
    assert (layer.weight.grad - alone.weight.grad).norm() > 1e-2 * alone.weight.grad.norm(), (
        "a Gram matrix for all"
    )


def test_what_lanes_leave_alone():
    layer, x = tract.TrAct(nn.Linear(4, 2), gram="batch"), torch.randn(6, 4)
    layer.lanes = 3
    layer(x).square().sum().backward()
    assert layer.row_sum.grad == 6, "the batch's Gram matrix is summed in one piece"
    tract.TrAct(layer, gram="lane")
    with pytest.raises(ValueError, match="7 samples do not divide into 3 lanes"):
        layer(torch.randn(7, 4))
    with torch.no_grad():
        layer(torch.randn(7, 4))
    assert "lanes" not in vars(tract.remove(layer))
