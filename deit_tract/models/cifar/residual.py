"""VGG, DenseNet, and the networks of residual blocks for 32 px (nets.py)."""

from timm.layers import SEModule
from torch import nn
from torchvision.models import vgg as torchvision_vgg

from deit_tract.models.cifar.blocks import Cat, Network, Residual, chain, conv

DEPTHS = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}
BASIC = ("18", "34")  # two 3x3 a block; the others have 1x1, 3x3 and 1x1


def vgg(depth: str, images: int) -> Network:
    """VGG's convolutions with batch normalisation, down to one position."""
    letter = {"11": "A", "13": "B", "16": "D", "19": "E"}[depth]
    layers = []
    before = images
    for width in torchvision_vgg.cfgs[letter]:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(conv(before, width, 3, bias=True))
            before = width
    return layers, before


def densenet(depth: str, images: int) -> Network:
    """DenseNet; no ReLU in its transitions."""
    shapes = {
        "121": (32, (6, 12, 24, 16)),
        "161": (48, (6, 12, 36, 24)),
        "201": (32, (6, 12, 48, 32)),
    }
    growth, depths = shapes[depth]
    width = 2 * growth
    layers = [nn.Sequential(nn.Conv2d(images, width, 3, padding=1, bias=False))]
    for stage, count in enumerate(depths):
        if stage:
            halve = nn.Conv2d(width, width // 2, 1, bias=False)
            layers.append(nn.Sequential(nn.BatchNorm2d(width), halve, nn.AvgPool2d(2)))
            width //= 2
        for _ in range(count):
            inner = nn.Conv2d(width, 4 * growth, 1, bias=False)
            outer = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
            layers.append(Cat(nn.Identity(), _before(width, inner, _before(4 * growth, outer))))
            width += growth
    return [*layers, _before(width)], width


def wide_resnet(images: int) -> Network:
    """Wide ResNet of depth 40 and 10 times the width; no batch normalisation in its shortcuts."""
    layers = [nn.Sequential(nn.Conv2d(images, 16, 3, padding=1))]
    before = 16
    for width, stride in ((160, 1), (320, 2), (640, 2)):
        for number in range(6):
            first = nn.Conv2d(before, width, 3, 1 if number else stride, 1)
            second = nn.Conv2d(width, width, 3, padding=1)
            body = _before(before, first, _before(width, nn.Dropout(0.5), second))
            shortcut = None if number else nn.Conv2d(before, width, 1, stride)
            layers.append(Residual(body, shortcut))
            before = width
    return [*layers, _before(before)], before


def _before(width: int, *layers: nn.Module) -> nn.Sequential:
    """Put batch normalisation and ReLU before layers."""
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), *layers)


def resnet(kind: str, depth: str, images: int) -> Network:
    """ResNet without a max-pool, or by its kind one of three others.

    next: ResNeXt of 32 groups, which a block's first 1x1 has, too.
    se: squeeze and excitation, which follows a ReLU.
    drop: stochastic depth; the first block is kept always, the last one in half of the steps, and
        no ReLU follows a sum.
    """
    depths = (3, 4, 36, 3) if (kind, depth) == ("next", "152") else DEPTHS[depth]
    bias = kind == "se" or (kind == "drop" and depth in BASIC)
    layers = [conv(images, 64, 3, bias=kind in ("se", "drop"))]
    before = 64
    for stage, count in enumerate(depths):
        inner = 64 * 2**stage
        width = inner if depth in BASIC else 4 * inner
        for number in range(count):
            stride = 2 if stage and not number else 1
            body = _body(before, inner, width, stride, kind, bias)
            shortcut = None
            if stride != 1 or before != width:
                shortcut = conv(before, width, 1, stride, act=None, bias=bias)
            keep = 1 - 0.5 * (len(layers) - 1) / (sum(depths) - 1) if kind == "drop" else 1.0
            block = Residual(body, shortcut, keep)
            layers.append(block if kind == "drop" else nn.Sequential(block, nn.ReLU(inplace=True)))
            before = width
    return layers, before


def _body(before: int, inner: int, width: int, stride: int, kind: str, bias: bool) -> nn.Sequential:
    basic = width == inner
    if kind == "next":
        inner *= 2
    steps = ((inner, 3, stride),) if basic else ((inner,), (inner, 3, stride))
    layers = [chain(before, *steps, groups=32 if kind == "next" else 1, bias=bias)]
    act = nn.ReLU if kind == "se" else None
    layers.append(conv(inner, width, 3 if basic else 1, act=act, bias=bias))
    if kind == "se":
        layers.append(SEModule(width, rd_channels=width // 16))
    return nn.Sequential(*layers)
