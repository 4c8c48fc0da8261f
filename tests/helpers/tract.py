"""Shared by the tests of tract."""

import copy
import math
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from deit_tract import tract
from deit_tract.tract import TrAct
from tests.helpers import REAL_IMAGES

# ---- the independent statement -------------------------------------------------------------------


def patches(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A [groups, b, n] in float64: column j is what the plain layer answers with the j-th unit
    vector as its weight.
    """
    if isinstance(layer, nn.Linear):
        return x.double().reshape(1, -1, layer.in_features)
    groups, rest = layer.groups, layer.weight.shape[1:]
    n = math.prod(rest)
    probe = copy.deepcopy(tract.remove(copy.deepcopy(layer))).double()
    probe.bias, probe.out_channels = None, groups * n
    probe.weight = nn.Parameter(
        torch.eye(n, dtype=torch.float64).reshape(n, *rest).repeat(groups, *[1] * len(rest))
    )
    with torch.no_grad():
        z = probe(x.double() if x.dim() == len(rest) + 1 else x.double().unsqueeze(0))
    return z.unflatten(1, (groups, n)).movedim((1, 2), (0, -1)).reshape(groups, -1, n)


def output_rows(layer: nn.Module, g: torch.Tensor) -> torch.Tensor:
    """g [groups, b, m] in float64."""
    if isinstance(layer, nn.Linear):
        return g.double().reshape(1, -1, layer.out_features)
    g = g.double() if g.dim() == layer.weight.dim() else g.double().unsqueeze(0)
    return (
        g.unflatten(1, (layer.groups, -1))
        .movedim((1, 2), (0, -1))
        .reshape(layer.groups, -1, g.shape[1] // layer.groups)
    )


def expected(layer: nn.Module, x: torch.Tensor, g: torch.Tensor, lam: float) -> torch.Tensor:
    """Equation 12, n x n form, float64."""
    a, g = patches(layer, x), output_rows(layer, g)
    b, n = a.shape[1:]
    gram = a.mT @ a / max(b, 1) + lam * torch.eye(n, dtype=torch.float64)
    return torch.linalg.solve(gram, a.mT @ g).mT.reshape(layer.weight.shape)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


# ---- every option of every layer -----------------------------------------------------------------

LAYERS = {
    "3x3": (lambda: nn.Conv2d(3, 8, 3, padding=1), (4, 3, 9, 9)),
    "7x7/2": (lambda: nn.Conv2d(3, 8, 7, 2, 3, bias=False), (2, 3, 33, 32)),
    "5x3/2x1, uneven padding": (lambda: nn.Conv2d(3, 8, (5, 3), (2, 1), (2, 0)), (3, 3, 16, 11)),
    "11x11/4": (lambda: nn.Conv2d(3, 8, 11, 4, 2), (3, 3, 47, 63)),
    "patches": (lambda: nn.Conv2d(3, 24, 4, 4), (4, 3, 16, 20)),
    "patches, ragged": (lambda: nn.Conv2d(3, 24, 4, 4), (4, 3, 18, 23)),
    "stride beyond kernel": (lambda: nn.Conv2d(3, 8, 2, 3, 1), (4, 3, 17, 16)),
    "wide kernel one way": (lambda: nn.Conv2d(3, 8, (2, 5), (2, 2), (0, 2)), (4, 3, 12, 16)),
    "1x1": (lambda: nn.Conv2d(5, 8, 1), (2, 5, 6, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 9, 9)),
    "groups, few rows": (lambda: nn.Conv2d(8, 6, 5, groups=2), (2, 8, 6, 7)),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 9, 8)),
    "dilation": (lambda: nn.Conv2d(3, 8, 3, padding=2, dilation=2), (3, 3, 12, 12)),
    "dilation and stride": (lambda: nn.Conv2d(3, 8, 3, 2, 1, dilation=(2, 3)), (4, 3, 14, 15)),
    "dilation along rows": (lambda: nn.Conv2d(3, 8, 3, 1, dilation=(1, 2)), (3, 3, 12, 12)),
    "dilation, kernel below stride": (lambda: nn.Conv2d(3, 8, 2, 4, dilation=3), (9, 3, 15, 15)),
    "reflect": (lambda: nn.Conv2d(3, 8, 3, padding=(2, 1), padding_mode="reflect"), (3, 3, 9, 8)),
    "replicate": (
        lambda: nn.Conv2d(3, 8, 5, 2, padding=2, padding_mode="replicate"),
        (5, 3, 9, 12),
    ),
    "circular": (lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (3, 3, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 8, (4, 3), padding="same"), (3, 3, 9, 8)),
    "same, reflect": (
        lambda: nn.Conv2d(3, 8, 4, 1, "same", (1, 2), padding_mode="reflect"),
        (3, 3, 9, 8),
    ),
    "valid": (lambda: nn.Conv2d(3, 8, 3, padding="valid"), (3, 3, 9, 8)),
    "unbatched": (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 9, 9)),
    "unbatched, few rows": (lambda: nn.Conv2d(3, 8, 4, 4), (3, 9, 9)),
    "few rows": (lambda: nn.Conv2d(3, 8, 5, padding=1), (1, 3, 9, 8)),
    "few rows, patches": (lambda: nn.Conv2d(3, 8, 8, 8), (2, 3, 24, 17)),
    "one row": (lambda: nn.Conv2d(3, 8, 8, 8), (1, 3, 8, 8)),
    "1d": (lambda: nn.Conv1d(2, 8, 5, 2, 2), (6, 2, 21)),
    "1d, dilated, circular": (
        lambda: nn.Conv1d(2, 8, 3, dilation=3, padding=2, padding_mode="circular"),
        (4, 2, 21),
    ),
    "1d, unbatched, same": (lambda: nn.Conv1d(2, 8, 4, padding="same"), (2, 21)),
    "3d": (lambda: nn.Conv3d(2, 8, (3, 2, 3), (1, 2, 2), 1), (3, 2, 6, 7, 8)),
    "3d, patches": (lambda: nn.Conv3d(2, 8, 2, 2), (4, 2, 6, 6, 9)),
    "3d, groups": (
        lambda: nn.Conv3d(2, 8, 2, padding=1, groups=2, padding_mode="replicate"),
        (2, 2, 4, 4, 5),
    ),
    "linear": (lambda: nn.Linear(12, 7), (40, 12)),
    "linear, few rows": (lambda: nn.Linear(60, 7, bias=False), (40, 60)),
    "linear, 1-D": (lambda: nn.Linear(12, 7), (12,)),
    "linear, 3-D": (lambda: nn.Linear(12, 7), (4, 10, 12)),
    "linear, 4-D": (lambda: nn.Linear(12, 7), (2, 3, 4, 12)),
}


def assert_compiled_is_equal(name: str, backend: str) -> None:
    """A compiled TrAct layer has the gradient that an uncompiled one should have."""
    make, shape = LAYERS[name]
    torch._dynamo.reset()
    layer, x = tract.TrAct(make()), torch.randn(shape)
    g = torch.randn(layer(x).shape)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    compiled(x).backward(g)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


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


def photos(count: int, size: int) -> torch.Tensor:
    """The first photos of ImageNet that are there, squares of a size, normalised."""
    archive = REAL_IMAGES / "imagenet_samples_256.tar"
    if not archive.exists():
        pytest.skip(f"needs the real images {archive.name} beside the checkout")
    with tarfile.open(archive) as tar:
        files = islice((member for member in tar if member.isfile()), count)
        images = [Image.open(tar.extractfile(file)).convert("RGB") for file in files]
    squares = [np.array(ImageOps.fit(image, (size, size))) for image in images]
    x = torch.from_numpy(np.stack(squares)).movedim(-1, 1) / 255
    constants = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in constants)
    return (x - mean) / std


def pixels(x: torch.Tensor) -> torch.Tensor:
    """Normalised images as [0, 255]."""
    return ((x * 0.22 + 0.45).clamp(0, 1) * 255).round()


def check_any_convolution(data: st.DataObject) -> None:
    """Of drawn axes, sizes, strides, dilation, padding and groups."""
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
