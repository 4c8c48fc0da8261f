"""TrAct against an independent float64 statement of its equation, the paper's lemmas, and what it
must leave alone.
"""

import copy
import math
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from deit_tract import tract
from deit_tract.tract import TrAct, gram
from tests.helpers.tract import LAYERS, error, expected
from tools.benches.measure import peak_bytes


def weight_gradient(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    layer.weight.grad = None
    layer(x).backward(g)
    return layer.weight.grad


def check(
    layer: nn.Module, x: torch.Tensor, tolerance: float = 2e-5, lam: float = 0.1, **options
) -> None:
    """Output, input and bias gradients bitwise the plain layer's; weight gradient as stated."""
    plain, ours = copy.deepcopy(layer), TrAct(copy.deepcopy(layer), lam, **options)
    x_plain, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    z_plain, z_ours = plain(x_plain), ours(x_ours)
    assert torch.equal(z_plain, z_ours) and z_plain.stride() == z_ours.stride()
    g = torch.randn(z_plain.shape, generator=torch.Generator().manual_seed(1)).to(z_plain.dtype)
    z_plain.backward(g)
    z_ours.backward(g)
    assert torch.equal(x_plain.grad, x_ours.grad)
    assert layer.bias is None or torch.equal(plain.bias.grad, ours.bias.grad)
    assert ours.weight.grad.dtype == plain.weight.grad.dtype
    assert error(ours.weight.grad, expected(layer, x, g, lam)) <= tolerance


def natural_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Images with a photograph's 1/f spectrum, normalised to mean 0 and variance 1."""
    frequency = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    x = torch.fft.irfft2(
        torch.fft.rfft2(noise) / frequency.sqrt().clamp(min=1 / size), s=(size, size)
    )
    x = x + x.mean(1, keepdim=True)
    return (x - x.mean()) / x.std()


def pixels(x: torch.Tensor) -> torch.Tensor:
    """Normalised images as [0, 255]."""
    return ((x * 0.22 + 0.45).clamp(0, 1) * 255).round()


@pytest.mark.parametrize("max_bytes", [None, 1200])
@pytest.mark.parametrize("name", LAYERS)
def test_weight_gradient(name, max_bytes):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    check(make(), torch.randn(shape), lam=0.07, max_bytes=max_bytes)


@pytest.mark.parametrize("max_bytes", [20_000, 60_000])
def test_weight_gradient_from_shared_rows_in_pieces(max_bytes):
    """Caps that let image lines be shared and still cut images apart, or an image's columns."""
    for layer, shape in (
        (nn.Conv2d(3, 8, 7, 2, 3), (3, 3, 12, 40)),
        (nn.Conv2d(1, 4, 3, padding=1), (9, 1, 20, 300)),
    ):
        check(layer, torch.randn(shape), max_bytes=max_bytes)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_weight_gradient_of_any_convolution(data):
    draw = data.draw
    axes = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, stride, dilation, groups = each(1, 4), each(1, 4), each(1, 3), draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.sampled_from(["valid", "same"])) if draw(st.booleans()) else each(0, 3)
    if padding == "same":
        stride = (1,) * axes
    size = tuple(
        d * (k - 1) + 1 + draw(st.integers(3, 7)) for k, d in zip(kernel, dilation, strict=True)
    )
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    channels = groups * draw(st.integers(1, 2))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = kind(channels, groups * 2, kernel, stride, padding, dilation, groups, padding_mode=mode)
    check(
        layer,
        torch.randn(draw(st.integers(1, 4)), channels, *size),
        max_bytes=draw(st.sampled_from([None, 4000])),
    )


def test_memory_formats_and_strides():
    x = torch.randn(4, 3, 18, 18)
    for layer in (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 6, 6), nn.Conv2d(3, 8, 9, 9)):
        check(layer, x.contiguous(memory_format=torch.channels_last))
        check(copy.deepcopy(layer).to(memory_format=torch.channels_last), x)
        check(layer, torch.randn(18, 4, 18, 3).permute(1, 3, 2, 0)[..., ::1])
        check(layer, torch.randn(4, 3, 36, 18)[:, :, ::2])
    check(nn.Linear(6, 5), torch.randn(6, 9, 4).permute(2, 1, 0))
    check(nn.Linear(60, 5), torch.randn(60, 9, 4).permute(2, 1, 0))
    check(nn.Linear(6, 5), torch.randn(1, 6).expand(30, 6))


def test_channels_last_gradient_keeps_the_weights_strides():
    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    plain, ours = copy.deepcopy(layer), TrAct(copy.deepcopy(layer))
    for each in (plain, ours):
        each(torch.randn(2, 3, 9, 9)).sum().backward()
    assert ours.weight.grad.stride() == plain.weight.grad.stride()


def test_padding_set_after_construction_is_seen():
    layer = nn.Conv2d(3, 8, 3)
    layer.padding = (2, 1)
    check(layer, torch.randn(3, 3, 9, 9))


# ---- numbers -------------------------------------------------------------------------------------

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


# ---- the paper -----------------------------------------------------------------------------------


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


# ---- what stays as it was ------------------------------------------------------------------------


def test_wrapping_keeps_everything():
    layer = nn.Conv2d(3, 8, 3).double().eval()
    layer.mark, calls = "mine", []
    layer.register_forward_hook(lambda *_: calls.append(1))
    weight, bias, keys, state = (
        layer.weight,
        layer.bias,
        list(layer.state_dict()),
        torch.get_rng_state(),
    )
    model = nn.Sequential(layer, nn.ReLU())
    wrapped = TrAct(layer)
    assert wrapped is layer and isinstance(layer, nn.Conv2d) and model[0] is layer
    assert layer.weight is weight and layer.bias is bias and list(layer.state_dict()) == keys
    assert layer.mark == "mine" and not layer.training and layer.weight.dtype == torch.float64
    model(torch.randn(1, 3, 5, 5).double())
    assert calls == [1]
    torch.set_rng_state(state)
    TrAct(nn.utils.skip_init(nn.Linear, 3, 4), gram="batch")
    assert torch.equal(torch.get_rng_state(), state)
    assert [id(p) for p in layer.parameters()] == [id(weight), id(bias)] and not list(
        layer.buffers()
    )


@pytest.mark.parametrize("gram", ["lane", "batch"])
def test_copies(gram):
    layer, x = TrAct(nn.Conv2d(3, 8, 3), 0.3, gram=gram), torch.randn(2, 3, 9, 9)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert type(other) is type(layer) and other.lam == 0.3 and other.gram == gram
        other(x).sum().backward()
        tract.finish_step(other)
    assert len(pickle.dumps(layer)) < len(pickle.dumps(nn.Conv2d(3, 8, 3))) + 2000
    fresh = nn.Conv2d(3, 8, 3)
    fresh.load_state_dict(layer.state_dict())
    layer.load_state_dict(fresh.state_dict())


def test_lam_is_shown_and_can_be_set():
    layer, x = TrAct(nn.Linear(6, 3), lam=0.25), torch.randn(20, 6)
    assert "lam=0.25" in repr(layer) and "gram" not in repr(layer)
    assert "gram=batch" in repr(TrAct(nn.Conv2d(1, 1, 1), gram="batch"))
    layer.lam = 0.5
    g = torch.randn(20, 3)
    assert error(weight_gradient(layer, x, g), expected(layer, x, g, 0.5)) < 2e-5


def test_wrapping_twice():
    layer = TrAct(nn.Linear(6, 3), l=0.2, max_bytes=5)
    assert TrAct(layer) is layer and (layer.lam, layer.max_bytes, layer.gram) == (0.2, 5, "lane")
    TrAct(layer, 0.3)
    assert (layer.lam, layer.max_bytes) == (0.3, 5)
    TrAct(layer, gram="batch")
    assert (layer.lam, layer.gram) == (0.3, "batch") and "gram_sum" in vars(layer)
    TrAct(layer, gram="lane")
    assert layer.gram == "lane" and "gram_sum" not in vars(layer)


def test_no_gradient_no_work():
    layer = TrAct(nn.Conv2d(3, 8, 3))
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.no_grad():
        assert layer(x).grad_fn is None
    layer.weight.requires_grad_(False)
    assert "Tract" not in str(layer(x).grad_fn) and "Side" not in str(
        layer(x).grad_fn.next_functions
    )
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and layer.bias.grad is not None


def test_shared_layer_adds_up():
    layer, x = TrAct(nn.Linear(6, 3)), torch.randn(2, 20, 6)
    (layer(x[0]).sum() + layer(x[1]).sum()).backward()
    ones = torch.ones(20, 3)
    want = expected(layer, x[0], ones, 0.1) + expected(layer, x[1], ones, 0.1)
    assert error(layer.weight.grad, want) < 2e-5


def test_no_second_derivative():
    layer = TrAct(nn.Linear(6, 3))
    (gradient,) = torch.autograd.grad(
        layer(torch.randn(20, 6)).square().sum(), layer.weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_meta_device():
    for layer, shape in ((nn.Conv2d(3, 8, 3), (4, 3, 9, 9)), (nn.Linear(60, 3), (5, 60))):
        layer = TrAct(layer.to("meta"))
        layer(torch.randn(shape, device="meta")).sum().backward()
        assert layer.weight.grad.shape == layer.weight.shape


# ---- refusals ------------------------------------------------------------------------------------


class OwnForward(nn.Conv2d):
    pass


def replaced_forward():
    layer = nn.Linear(3, 4)
    layer.forward = layer.forward
    return layer


def refused() -> dict:
    from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "StdConv2d": StdConv2d(3, 8, 3),
            "ScaledStdConv2d": ScaledStdConv2d(3, 8, 3),
            "Conv2dSame": Conv2dSame(3, 8, 3),
            "OwnForward": OwnForward(3, 8, 3),
            "LazyConv2d": nn.LazyConv2d(8, 3),
            "ParametrizedConv2d": parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
            "ParametrizedLinear": parametrizations.orthogonal(nn.Linear(3, 8)),
            "Conv2d": nn.utils.weight_norm(nn.Conv2d(3, 8, 3)),
            "Linear": replaced_forward(),
            "ConvTranspose2d": nn.ConvTranspose2d(3, 8, 3),
            "Embedding": nn.Embedding(3, 8),
            "Sequential": nn.Sequential(nn.Linear(3, 8)),
        }


def test_other_layers_are_refused_by_name():
    for name, layer in refused().items():
        kind = type(layer)
        with pytest.raises(TypeError, match=name):
            TrAct(layer)
        assert type(layer) is kind


def test_settings_out_of_range():
    layer = nn.Linear(3, 4)
    for lam in (0, -0.1, math.nan, math.inf, "0.1"):
        with pytest.raises(ValueError, match="lam must be"):
            TrAct(layer, lam)
        with pytest.raises(ValueError, match="lam must be"):
            TrAct(layer, l=lam)
    for options in ({"gram": "global"}, {"gram_dtype": torch.bfloat16}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TrAct(layer, **options)
    with pytest.raises(TypeError, match="two names"):
        TrAct(layer, 0.1, l=0.2)
    assert type(layer) is nn.Linear and "lam" not in vars(layer)


def test_frozen_weight_warns():
    with pytest.warns(UserWarning, match="frozen"):
        TrAct(nn.Linear(3, 4).requires_grad_(False))


# ---- models --------------------------------------------------------------------------------------


def test_first_layers_of_timm_models():
    import timm

    for model, name in {
        "vit_tiny_patch16_224": "patch_embed.proj", "resnet18": "conv1", "resnet18d": "conv1.0",
        "convnext_atto": "stem.0",
    }.items():  # fmt: skip
        net = timm.create_model(model)
        assert tract.apply_to_first_layer(net, 0.2) == name
        assert [found for found, _ in tract.find(net)] == [name] and net.get_submodule(
            name
        ).lam == 0.2
    with pytest.raises(TypeError, match="Conv2dSame"):
        tract.apply_to_first_layer(timm.create_model("tf_mobilenetv3_small_minimal_100"))


def test_first_layers_of_other_models():
    import torchvision.models as zoo

    for net, name in ((zoo.resnet18(), "conv1"), (zoo.alexnet(), "features.0")):
        net.train()
        net.get_submodule(name).eval()
        before = copy.deepcopy(net.state_dict())
        assert tract.apply_to_first_layer(net) == name
        assert net.training and not net.get_submodule(name).training
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.head, self.stem = nn.Linear(4, 2), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.head(self.stem(torch.stack(images)).mean((2, 3)))


def test_first_layer_is_the_one_called_first():
    net = Backwards()
    with pytest.raises(ValueError, match="sample="):
        tract.apply_to_first_layer(net)
    assert tract.apply_to_first_layer(net, sample=[torch.zeros(3, 8, 8)]) == "stem"
    assert not net.stem._forward_pre_hooks
    with pytest.raises(ValueError, match="no convolution"):
        tract.apply_to_first_layer(nn.ReLU())


def test_remove():
    net = nn.Sequential(TrAct(nn.Conv2d(3, 4, 3), 0.2, gram="batch"), TrAct(nn.Linear(3, 4)))
    before = list(vars(nn.Conv2d(3, 4, 3)))
    assert tract.remove(net) is net and tract.find(net) == []
    assert type(net[0]) is nn.Conv2d and type(net[1]) is nn.Linear and list(vars(net[0])) == before


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gram", ["lane", "batch"])
def test_activation_checkpointing(gram, reentrant):
    layer, x = (
        TrAct(nn.Conv2d(3, 8, 4, 4), gram=gram),
        torch.randn(4, 3, 16, 16, requires_grad=True),
    )
    g = torch.randn(4, 8, 4, 4)
    checkpoint(layer, x, use_reentrant=reentrant).backward(g)
    tract.finish_step(layer)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


def test_saved_input_changed_in_place_is_noticed():
    layer, x = TrAct(nn.Linear(6, 3)), torch.randn(20, 6)
    z = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


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


def test_memory_of_the_imagenet_stem():
    layer, x = nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.randn(8, 3, 224, 224)
    g, cpu = torch.randn(8, 64, 112, 112), torch.device("cpu")
    plain = peak_bytes(lambda: weight_gradient(layer, x, g), cpu)
    ours = peak_bytes(lambda: weight_gradient(TrAct(layer), x, g), cpu)
    assert plain > 24 << 20  # the output and more: the measurement sees the step
    assert ours - plain < 16 << 20


@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"stride": 7}, {"groups": 3}])
def test_patches_are_copied_within_the_cap(options):
    """Overlapping patches by shared image lines, as columns, and patches with pixels of their own,
    as rows.
    """
    cap, x = 2 << 20, torch.randn(6, 3, 160, 170)
    layer = TrAct(nn.Conv2d(3, 6, 7, padding=3, **options), max_bytes=cap)
    seen, rule = layer._rule(x if "stride" not in options else x.repeat(16, 1, 1, 1))
    assert gram._rows_are_shared(seen, rule, torch.float32) == (not options)
    assert rule.rows * rule.columns * 4 * rule.groups > 7 * cap
    assert peak_bytes(lambda: gram.gram_matrix(seen, rule, torch.float32), x.device) < 3.5 * cap


# ---- gram="batch", in one process ----------------------------------------------------------------


def batch_case(gram="batch", **options):
    torch.manual_seed(0)
    net = nn.Sequential(
        TrAct(nn.Conv2d(3, 8, 4, 4), gram=gram, **options),
        nn.Flatten(),
        nn.GELU(),
        nn.Linear(128, 5),
    )
    return net, torch.randn(8, 3, 16, 16), torch.randint(5, (8,))


def lane_steps(net, x, y, lanes):
    for images, labels in zip(x.split(8 // lanes), y.split(8 // lanes), strict=True):
        (F.cross_entropy(net(images), labels) / lanes).backward()
    tract.finish_step(net)
    return net[0].weight.grad


def test_gram_of_the_batch_does_not_depend_on_lanes():
    net, x, y = batch_case("lane")
    whole = lane_steps(net, x, y, 1)
    for lanes in (1, 2, 4, 8):
        net, x, y = batch_case()
        assert error(lane_steps(net, x, y, lanes), whole.double()) < 1e-6
        assert (
            lanes == 1
            or error(lane_steps(batch_case("lane")[0], x, y, lanes), whole.double()) > 1e-2
        )  # not so else
        net.zero_grad()
        assert (
            error(lane_steps(net, x, y, lanes), whole.double()) < 1e-6
        )  # and the next step starts clean


def test_gram_of_the_batch_for_groups_and_other_layers():
    for name in (
        "groups",
        "groups, few rows",
        "depthwise",
        "3d",
        "linear",
        "linear, few rows",
        "unbatched",
    ):
        make, shape = LAYERS[name]
        layer, x = TrAct(make(), gram="batch"), torch.randn(shape)
        g = torch.randn(layer(x).shape)
        weight_gradient(layer, x, g)
        tract.finish_step(layer)
        assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


def test_a_step_given_up_leaves_nothing():
    net, x, y = batch_case()
    whole = lane_steps(net, x, y, 2)
    net.zero_grad()
    F.cross_entropy(net(x * 9), y).backward()  # no finish_step: the step is given up
    net.zero_grad()
    assert error(lane_steps(net, x, y, 2), whole.double()) < 1e-6
    net.zero_grad(set_to_none=False)
    F.cross_entropy(net(x * 9), y).backward()
    net.zero_grad(set_to_none=False)
    tract.reset(net)  # zeros tell nothing
    assert error(lane_steps(net, x, y, 2), whole.double()) < 1e-6


def test_forward_alone_counts_for_nothing():
    net, x, y = batch_case()
    whole = lane_steps(net, x, y, 1)
    net.zero_grad()
    net(x * 9)
    net(x).detach()
    assert error(lane_steps(net, x, y, 1), whole.double()) < 1e-6


def test_finish_step_refuses_in_a_sentence():
    net, x, y = batch_case()
    tract.finish_step(net)  # nothing done, nothing to do
    F.cross_entropy(net(x), y).backward()
    net[0].weight.grad = None  # as an engine does that keeps gradients elsewhere
    with pytest.raises(RuntimeError, match=r"0\.weight has no gradient"):
        tract.finish_step(net)
    tract.check_engine(net, 0)
    for stage in (1, 2, 3):
        tract.check_engine(batch_case("lane")[0], stage)
        with pytest.raises(ValueError, match=f"stage {stage}"):
            tract.check_engine(net, stage)


def test_gram_of_the_batch_follows_the_layer():
    layer = TrAct(nn.Conv2d(3, 8, 3), gram="batch").to("meta").to_empty(device="cpu")
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    x, g = torch.randn(4, 3, 9, 9), torch.randn(4, 8, 7, 7)
    weight_gradient(layer, x, g)
    tract.finish_step(layer)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5
