"""NASNet-A for 32 px (nets.py): Zoph et al. 2018, "Learning Transferable Architectures"."""

import torch
from torch import Tensor, nn

from deit_tract.models.cifar.blocks import Network, conv, separable

WIDTH = 44


def nasnet(images: int) -> Network:
    """Three times four normal cells, with a reduction after the first and the second four."""
    cells = []
    x = previous = WIDTH  # channels of a cell's two inputs
    fits = "same"
    for stage in range(3):
        width = WIDTH * 2**stage
        for kind in (*([Reduction] if stage else []), *[Normal] * 4):
            cells.append(kind(x, previous, width, fits))
            previous = x
            x = kind.outputs * width
            fits = "halved" if kind is Reduction else "same"
    return [conv(images, WIDTH, 3, act=None), Cells(cells), nn.ReLU(inplace=True)], x


class Cells(nn.ModuleList):
    """Cells that see the outputs of the last two; the first sees its input twice."""

    def forward(self, x: Tensor) -> Tensor:
        previous = x
        for cell in self:
            x, previous = cell(x, previous), x
        return x


class Fit(nn.Module):
    """Halves the side of the output before the last: its positions of even and of odd numbers."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.even = nn.Conv2d(before, width // 2, 1)
        self.odd = nn.Conv2d(before, width // 2, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        shifted = nn.functional.pad(x, (-1, 1, -1, 1))  # zeros right of and below the last
        halves = [self.even(x[..., ::2, ::2]), self.odd(shifted[..., ::2, ::2])]
        return self.norm(torch.cat(halves, 1))


class Cell(nn.Module):
    """Brings the last output and the one before to `width` channels and one size."""

    def __init__(self, x: int, previous: int, width: int, fits: str):
        super().__init__()
        bias = isinstance(self, Reduction)
        self.reduce = _one_by_one(x, width, bias)
        if fits == "halved":
            self.fit = Fit(previous, width)
        else:
            self.fit = nn.Identity() if previous == width else _one_by_one(previous, width, True)


class Normal(Cell):
    outputs = 6

    def __init__(self, x: int, previous: int, width: int, fits: str):
        super().__init__(x, previous, width, fits)
        kernels = {"a": 3, "b": 3, "c": 5, "d": 5, "e": 3}
        branches = {name: _branch(width, kernel, 1, False) for name, kernel in kernels.items()}
        self.branches = nn.ModuleDict(branches)
        self.mean = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        x = self.reduce(x)
        p = self.fit(previous)
        on = self.branches
        pairs = [
            on["a"](x) + x,
            on["b"](p) + on["c"](x),
            self.mean(x) + x,
            2 * self.mean(p),
            on["d"](p) + on["e"](p),
        ]
        return torch.cat([p, *pairs], 1)


class Reduction(Cell):
    outputs = 4

    def __init__(self, x: int, previous: int, width: int, fits: str):
        super().__init__(x, previous, width, fits)
        kernels = {"a": 7, "b": 5, "c": 7, "d": 5}
        branches = {name: _branch(width, kernel, 2, True) for name, kernel in kernels.items()}
        self.branches = nn.ModuleDict(branches | {"e": _branch(width, 3, 1, True)})
        self.most = nn.MaxPool2d(3, 2, 1)
        self.halving_mean = nn.AvgPool2d(3, 2, 1)
        self.mean = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        x = self.reduce(x)
        p = self.fit(previous)
        on = self.branches
        first = on["a"](p) + on["b"](x)
        most = self.most(x)
        second = most + on["c"](p)
        third = self.halving_mean(x) + on["d"](p)
        return torch.cat([second, third, most + on["e"](first), self.mean(first) + second], 1)


def _one_by_one(before: int, width: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), conv(before, width, bias=bias, act=None))


def _branch(width: int, kernel: int, stride: int, bias: bool) -> nn.Sequential:
    """Make two separable convolutions, each after a ReLU; bias: of the first depthwise one."""
    layers = []
    for step, biases in ((stride, (bias, True)), (1, (True, True))):
        layers += [nn.ReLU(), separable(width, width, kernel, step, biases), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)
