"""The paper's lemmas and what follows from its equation."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from deit_tract.tract import TrAct
from tests.helpers.tract import error, weight_gradient


@pytest.mark.parametrize(("b", "n"), [(64, 16), (16, 64)])
def test_equals_the_papers_second_form(b, n):
    """Section 3.1: embed an input times the inverse, then put the true values in its place."""
    layer, x, g = nn.Linear(n, 5).double(), torch.randn(b, n).double(), torch.randn(b, 5).double()
    z = layer(x @ torch.linalg.inv(x.T @ x / b + 0.1 * torch.eye(n).double()))
    z.data = layer(x).data
    z.backward(g)
    assert error(weight_gradient(TrAct(copy.deepcopy(layer)), x, g), layer.weight.grad) < 1e-10


def equation_7(delta, g, x, lam, eta):
    """What the update is to minimise, summed over rows; samples along the first axis."""
    return (-eta * len(x) * g.T - delta @ x.T).square().sum() + lam * len(x) * delta.square().sum()


def test_lemma_1_the_update_minimises_equation_7():
    torch.manual_seed(0)
    for b, n in ((30, 12), (12, 30)):
        layer, x, g, lam, eta = (
            TrAct(nn.Linear(n, 4), 0.3),
            torch.randn(b, n),
            torch.randn(b, 4),
            0.3,
            0.7,
        )
        delta = (-eta * weight_gradient(layer, x, g).double()).requires_grad_()

        objective = partial(equation_7, g=g.double(), x=x.double(), lam=lam, eta=eta)
        least = objective(delta)
        (slope,) = torch.autograd.grad(least, delta)
        zero = torch.zeros_like(delta, requires_grad=True)
        (slope_at_0,) = torch.autograd.grad(objective(zero), zero)
        assert slope.norm() < 1e-5 * slope_at_0.norm()
        assert all(objective(delta + 0.01 * torch.randn_like(delta)) > least for _ in range(20))


def test_lemma_2_the_update_is_zero_if_and_only_if_the_gradient_is():
    torch.manual_seed(0)
    for b, n in ((30, 12), (12, 30)):
        x, g = torch.randn(b, n).double(), torch.randn(b, 4).double()
        plain, ours = nn.Linear(n, 4).double(), TrAct(nn.Linear(n, 4).double())
        left = torch.linalg.svd(x, full_matrices=True)[0][
            :, min(b, n) :
        ]  # outputs' gradients that x^T cancels
        cancelled = left @ left.T @ g if b > n else torch.zeros_like(g)
        assert weight_gradient(plain, x, cancelled).norm() < 1e-12
        assert weight_gradient(ours, x, cancelled).norm() < 1e-12
        raw, update = weight_gradient(plain, x, g), weight_gradient(ours, x, g)
        assert raw.norm() > 1 and update.norm() > 0
        gram = x.T @ x / b + 0.1 * torch.eye(n).double()
        assert torch.allclose(
            update @ gram, raw
        )  # invertible, so neither is zero without the other
        assert (raw * update).sum() > 0  # and a descent direction


@pytest.mark.parametrize("b", [64, 16])
def test_whitened_input_only_rescales(b):
    """A^T A / b = I (or A A^T / b = I): the update is the raw gradient / (1 + lam)."""
    n = 16 if b == 64 else 64
    x = torch.linalg.qr(torch.randn(max(b, n), min(b, n)).double())[0] * math.sqrt(b)
    x, g = (x if b > n else x.T).float(), torch.randn(b, 5)
    layer = nn.Linear(n, 5)
    raw, update = (
        weight_gradient(copy.deepcopy(layer), x, g),
        weight_gradient(TrAct(layer, 0.2), x, g),
    )
    assert error(update * 1.2, raw.double()) < 1e-5


@pytest.mark.parametrize(("b", "n"), [(64, 16), (16, 64)])
def test_rotating_the_input_rotates_the_update(b, n):
    x, g = torch.randn(b, n), torch.randn(b, 5)
    q = torch.linalg.qr(torch.randn(n, n).double())[0]
    layer = TrAct(nn.Linear(n, 5))
    straight = weight_gradient(layer, x, g).double()
    assert error(weight_gradient(layer, (x.double() @ q).float(), g), straight @ q) < 1e-5


@pytest.mark.parametrize("shape", [(6, 3, 12, 12), (6, 3, 8, 8)])
def test_order_and_copies_of_samples(shape):
    """Permuting a batch changes nothing; every sample twice, under a mean loss, neither."""
    layer, x = TrAct(nn.Conv2d(3, 8, 4, 4)), torch.randn(shape)
    g = torch.randn(layer(x).shape)
    once, order = weight_gradient(layer, x, g).double(), torch.randperm(6)
    assert error(weight_gradient(layer, x[order], g[order]), once) < 1e-5
    assert (
        error(weight_gradient(layer, x.repeat(2, 1, 1, 1), g.repeat(2, 1, 1, 1) / 2), once) < 1e-5
    )


def test_lam_to_0_steps_in_z():
    """Equation 3: for b <= n an SGD step moves the pre-activations by -eta b grad_z."""
    for layer, x in (
        (nn.Linear(64, 8), torch.randn(20, 64)),
        (nn.Conv2d(3, 8, 8, 8), torch.randn(3, 3, 16, 24)),
    ):
        layer, x = TrAct(layer.double(), 1e-10), x.double()
        before = layer(x)
        g = torch.randn_like(before)
        rows = before.numel() // 8
        update = weight_gradient(layer, x, g)
        with torch.no_grad():
            layer.weight -= 0.3 * update
            assert error(layer(x) - before, -0.3 * rows * g) < 1e-8


def test_equals_the_published_package():
    torch_tract = pytest.importorskip(
        "torch_tract", reason="torch_tract, the published package, is not installed"
    )
    for layer, shape in (
        (nn.Conv2d(3, 8, 4, 4), (8, 3, 16, 16)), (nn.Conv2d(3, 8, 3, 1, 1), (8, 3, 9, 9)),
        (nn.Conv2d(3, 8, 8, 8), (2, 3, 16, 16)),
        (nn.Linear(12, 5), (40, 12)), (nn.Linear(60, 5), (40, 60)),
    ):  # fmt: skip
        x = torch.randn(shape)
        theirs = torch_tract.TrAct(copy.deepcopy(layer), l=0.2)
        g = torch.randn(theirs(x).shape)
        assert (
            error(
                weight_gradient(TrAct(layer, l=0.2), x, g), weight_gradient(theirs, x, g).double()
            )
            < 2e-5
        )
