"""TrAct's numbers: image-like inputs, half precision, autocast, scaled losses, bad values."""

import copy
import math

import pytest
import torch
from torch import nn

from deit_tract.tract import TrAct, gram
from tests.helpers.tract import (
    LAYERS,
    check,
    error,
    expected,
    natural_images,
    photos,
    pixels,
    weight_gradient,
)

CASES = {
    "patches": (nn.Conv2d(3, 32, 16, 16), 8, 224),
    "patches, few rows": (nn.Conv2d(3, 32, 16, 16), 2, 224),
    "stem": (nn.Conv2d(3, 16, 7, 2, 3), 2, 112),
    "3x3": (nn.Conv2d(3, 16, 3, padding=1), 8, 32),
    "stem, few rows": (nn.Conv2d(3, 16, 7, 2, 3), 1, 20),
}


@pytest.mark.parametrize("lam", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_normalised_images(name, lam):
    layer, count, size = CASES[name]
    check(layer, natural_images(count, size), tolerance=1e-4 if "few" in name else 2e-5, lam=lam)


@pytest.mark.parametrize("size", [32, 112])
def test_photos(size):
    """More rows, and correlated ones: the rounding of torch's own gradient is enlarged more."""
    count = 32 if size == 32 else 4
    x = photos(count, size)
    layer = TrAct(nn.Conv2d(3, 32, 3, padding=1))
    noise = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1))
    for gradient, bound in ((noise, 2e-4), (layer(x).detach() * noise.abs(), 4e-3)):
        got = weight_gradient(layer, x, gradient)
        assert error(got, expected(layer, x, gradient, 0.1)) < bound


@pytest.mark.parametrize("name", CASES)
def test_images_of_0_to_255(name):
    layer, count, size = CASES[name]
    check(layer, pixels(natural_images(count, size)), tolerance=2e-3)
    check(layer, natural_images(count, size) * 0 + 200.0, tolerance=2e-3)
    one_colour_each = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, size, size) * 30.0 + 20
    check(layer, one_colour_each.clone(), tolerance=2e-3)


def test_float32_gram_where_asked():
    layer, x = nn.Conv2d(3, 32, 16, 16), natural_images(8, 224)
    check(layer, x, gram_dtype=torch.float32)
    g = torch.randn(8, 32, 14, 14)
    for dtype in (torch.float32, torch.float64):
        ours = TrAct(copy.deepcopy(layer), gram_dtype=dtype)
        got = error(weight_gradient(ours, pixels(x), g), expected(layer, pixels(x), g, 0.1))
        assert (got < 2e-5) == (dtype == torch.float64)


def test_float64_layer():
    check(nn.Conv2d(3, 8, 3).double(), torch.randn(4, 3, 9, 9).double(), tolerance=1e-12)
    check(
        nn.Conv2d(3, 8, 3).double(),
        torch.randn(4, 3, 9, 9).double(),
        tolerance=1e-12,
        gram_dtype=torch.float32,
    )
    check(nn.Linear(60, 8).double(), torch.randn(40, 60).double(), tolerance=1e-12)


HALF = [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)]


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize("name", CASES)
def test_half_layer(name, dtype, tolerance):
    layer, count, size = CASES[name]
    layer, x = copy.deepcopy(layer).to(dtype), natural_images(count, size).to(dtype)
    ours = TrAct(copy.deepcopy(layer))
    g = torch.randn(layer(x).shape).to(dtype)
    gradient = weight_gradient(ours, x, g)
    assert gradient.dtype == dtype
    assert error(gradient, expected(layer, x, g, 0.1)) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize(
    "like_z", [0.0, 1.0]
)  # of g: for g = z a small update is left of a large raw gradient
@pytest.mark.parametrize("name", CASES)
def test_autocast(name, like_z, backward_inside, dtype):
    """As exact as in float32: 16 bits are rounded to in the output and its gradient alone."""
    layer, count, size = CASES[name]
    x = natural_images(count, size)
    plain, ours = copy.deepcopy(layer), TrAct(copy.deepcopy(layer))
    with torch.autocast("cpu", dtype):
        z, z_ours = plain(x), ours(x)
        g = (torch.randn(z.shape) + like_z * z.detach()).to(dtype)
        if backward_inside:
            z_ours.backward(g)
    if not backward_inside:
        z_ours.backward(g)
    assert z_ours.dtype == dtype and torch.equal(z, z_ours)
    assert ours.weight.grad.dtype == torch.float32
    assert error(ours.weight.grad, expected(layer, x, g, 0.1)) <= 1e-4


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rows", [30, 200])
def test_an_activation_in_place_may_follow(rows, autocast):
    layer, x = nn.Linear(64, 8), torch.randn(rows, 64)
    ours, gradients = TrAct(copy.deepcopy(layer)), []
    for activation in (nn.ReLU(inplace=True), nn.ReLU()):
        ours.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            activation(ours(x)).sum().backward()
        gradients.append(ours.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["patches, few rows", "stem"])
def test_autocast_stays_out_of_our_arithmetic(name):
    layer, count, size = CASES[name]
    layer, x = TrAct(copy.deepcopy(layer), gram_dtype=torch.float32), natural_images(count, size)
    g, gradients = torch.randn(layer(x).shape), []
    for inside in (False, True):
        layer.weight.grad = None
        z = layer(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            z.backward(g)
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
def test_linear_in_half_and_autocast(dtype, tolerance):
    for rows in (30, 200):
        x, layer = torch.randn(rows, 64), nn.Linear(64, 8)
        ours, g = TrAct(copy.deepcopy(layer)), torch.randn(rows, 8).to(dtype)
        with torch.autocast("cpu", dtype):
            z = ours(x)
            assert z.dtype == dtype and torch.equal(z, layer(x))
        z.backward(g)
        assert error(ours.weight.grad, expected(layer, x, g, 0.1)) <= tolerance
        half = TrAct(nn.Linear(64, 8).to(dtype))
        assert (
            error(weight_gradient(half, x.to(dtype), g), expected(half, x.to(dtype), g, 0.1))
            <= tolerance
        )


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (1, 3, 16, 16)])
def test_the_scale_of_the_loss_passes_through(shape):
    layer, x = TrAct(nn.Conv2d(3, 8, 8, 8)), torch.randn(shape)
    g = torch.randn(layer(x).shape)
    gradient, scaled = weight_gradient(layer, x, g), weight_gradient(layer, x, g * 2.0**16)
    assert error(scaled / 2.0**16, gradient.double()) < 1e-6


def test_grad_scaler():
    plain, scaled = TrAct(nn.Conv2d(3, 8, 4, 4)), None
    scaled = copy.deepcopy(plain)
    x = torch.randn(4, 3, 16, 16)
    plain(x).square().mean().backward()
    optimizer, scaler = torch.optim.SGD(scaled.parameters(), 0.1), torch.amp.GradScaler("cpu")
    scaler.scale(scaled(x).square().mean()).backward()
    scaler.unscale_(optimizer)
    assert error(scaled.weight.grad, plain.weight.grad.double()) < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["3x3", "patches", "few rows, patches", "depthwise", "linear", "linear, few rows"]
)
def test_bad_input_gives_bad_gradient_and_the_next_step_is_clean(name, bad):
    make, shape = LAYERS[name]
    layer, x = TrAct(make()), torch.randn(shape)
    g = torch.randn(layer(x).shape)
    clean = weight_gradient(layer, x, g)
    spoilt = x.clone()
    spoilt.view(-1)[-1 if x.dim() < 4 else 0] = bad
    assert not weight_gradient(layer, spoilt, g).isfinite().all()
    assert torch.equal(weight_gradient(layer, x, g), clean)


@pytest.mark.parametrize("name", ["3x3", "few rows, patches", "linear", "linear, few rows"])
def test_zero_input_and_empty_batch(name):
    make, shape = LAYERS[name]
    layer = TrAct(make())
    for x in (torch.zeros(shape), torch.zeros(0, *shape[1:])):
        assert torch.equal(
            weight_gradient(layer, x, torch.ones(layer(x).shape)), torch.zeros_like(layer.weight)
        )


def test_a_matrix_that_is_not_positive_definite_gives_nan():
    solved = gram.solve(
        gram.factorise(torch.tensor([[[-3.0]], [[2.0]]]), 1, 0.1), torch.ones(2, 1, 1)
    )
    assert solved[0].isnan().all() and solved[1].isfinite().all()


def test_cholesky_reads_the_lower_half_alone():
    """Which is why the upper half of a Gram matrix is not computed."""
    matrix = torch.randn(2, 400, 400)
    matrix = matrix @ matrix.mT
    right = torch.randn(2, 400, 3)
    spoilt = matrix.tril() + torch.full((400, 400), math.nan).triu(1)
    whole, lower = (gram.factorise(each, 400, 0.1) for each in (matrix.clone(), spoilt))
    assert torch.equal(gram.solve(whole, right), gram.solve(lower, right))
