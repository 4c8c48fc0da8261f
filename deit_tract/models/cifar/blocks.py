"""What the networks of nets.py are made of.

The functions that make one return a Network: the layers before the mean over positions, the first
of which is a Sequential that begins with the first convolution, and the channels that come out.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Network = tuple[list[nn.Module], int]
Size = int | tuple[int, int]


def conv(
    before: int,
    width: int,
    kernel: Size = 1,
    stride: int = 1,
    padding: Size | None = None,
    groups: int = 1,
    bias: bool = False,
    act: Callable[..., nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Make a convolution, batch normalisation and activation; without `padding`, same size."""
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else tuple(side // 2 for side in kernel)
    convolution = nn.Conv2d(before, width, kernel, stride, padding, groups=groups, bias=bias)
    layers = [convolution, nn.BatchNorm2d(width, eps)]
    return nn.Sequential(*layers) if act is None else nn.Sequential(*layers, act(inplace=True))


def chain(before: int, *steps: tuple, **options) -> nn.Sequential:
    """Make `conv` after `conv`, each step (width, kernel, stride, padding) or its beginning."""
    layers = []
    for step in steps:
        layers.append(conv(before, *step, **options))
        before = step[0]
    return nn.Sequential(*layers)


def separable(
    before: int,
    width: int,
    kernel: int,
    stride: int = 1,
    biases: tuple[bool, bool] = (False, False),
) -> nn.Sequential:
    """Make a convolution of each channel and one over the channels, with nothing between them."""
    own = {"groups": before, "bias": biases[0]}
    depthwise = nn.Conv2d(before, before, kernel, stride, kernel // 2, **own)
    return nn.Sequential(depthwise, nn.Conv2d(before, width, 1, bias=biases[1]))


class Cat(nn.Module):
    """The branches' outputs, one after the other along the channels."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Residual(nn.Module):
    """shortcut(x) + body(x).

    keep: probability that a forward pass in training has the body (for the whole batch: Huang et
        al. 2016, "Deep Networks with Stochastic Depth"); in evaluation the body is multiplied by
        it. A dropped body is not computed, so that its weights have no gradient. The draw is
        Python's, whose generator has a seed of its own for each lane.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, keep: float = 1.0):
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.keep == 1:
            dropped = self.keep < 1 and random.random() >= self.keep
            return self.shortcut(x) if dropped else self.shortcut(x) + self.body(x)
        return self.shortcut(x) + self.keep * self.body(x)

    def extra_repr(self) -> str:
        return f"keep={self.keep:.4g}" if self.keep < 1 else ""


class Multiply(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:.4g}"


class Shuffle(nn.Module):
    """Takes a channel of each group in turn (ShuffleNet)."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
