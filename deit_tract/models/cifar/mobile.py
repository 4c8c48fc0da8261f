"""SqueezeNet, MobileNets and ShuffleNets for 32 px (nets.py)."""

import torch
from torch import Tensor, nn

from deit_tract.models.cifar.blocks import Cat, Network, Residual, Shuffle, conv


def squeezenet(images: int) -> Network:
    """SqueezeNet with a bypass around its fire modules 3, 5 and 7."""
    layers = [conv(images, 96, 3, bias=True), nn.MaxPool2d(2)]
    before = 96
    for number, width in enumerate((128, 128, 256, 256, 384, 384, 512, 512), 2):
        squeezed = width // 8
        wide = [conv(squeezed, width // 2, kernel, bias=True) for kernel in (1, 3)]
        fire = nn.Sequential(conv(before, squeezed, bias=True), Cat(*wide))
        layers.append(Residual(fire) if number in (3, 5, 7) else fire)
        if number in (4, 8):
            layers.append(nn.MaxPool2d(2))
        before = width
    return layers, before


def mobilenet(images: int) -> Network:
    """MobileNet; a bias in its 1x1 convolutions only."""
    layers = [conv(images, 32, 3)]
    before = 32
    for width in (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024):
        stride = 2 if width > before > 32 else 1
        layers += [conv(before, before, 3, stride, groups=before), conv(before, width, bias=True)]
        before = width
    return layers, before


def mobilenetv2(images: int) -> Network:
    """MobileNetV2; its first layer is a 1x1 with padding, which makes 34 px of 32."""
    options = {"bias": True, "act": nn.ReLU6}
    layers = [conv(images, 32, 1, padding=1, **options)]
    before = 32
    stages = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 1), (320, 1, 1))
    for width, count, stride in stages:
        for number in range(count):
            inner = before * (1 if width == 16 else 6)
            step = 1 if number else stride
            block = nn.Sequential(
                conv(before, inner, **options),
                conv(inner, inner, 3, step, groups=inner, **options),
                conv(inner, width, bias=True, act=None),
            )
            layers.append(Residual(block) if number else block)
            before = width
    return [*layers, conv(before, 1280, **options)], 1280


def shufflenet(images: int) -> Network:
    """ShuffleNet of three groups, which its first 1x1 has, too."""
    layers = [conv(images, 24, 3, bias=True)]
    before = 24
    for width, count in ((240, 4), (480, 8), (960, 4)):
        inner = width // 4
        for number in range(count):
            out = width if number else width - before
            body = nn.Sequential(
                conv(before, inner, groups=3, bias=True),
                Shuffle(3),
                conv(inner, inner, 3, 1 if number else 2, groups=inner, bias=True, act=None),
                conv(inner, out, groups=3, bias=True, act=None),
            )
            unit = Residual(body) if number else Cat(nn.AvgPool2d(3, 2, padding=1), body)
            layers.append(nn.Sequential(unit, nn.ReLU(inplace=True)))
            before = width
    return layers, before


def shufflenetv2(images: int) -> Network:
    """ShuffleNetV2; no ReLU after the first layer."""
    layers = [conv(images, 24, 3, bias=True, act=None)]
    before = 24
    for width, count in ((116, 4), (232, 8), (464, 4)):
        half = width // 2
        both = Cat(_per_channel(before, half, 2), _per_channel(before, half, 2, first=True))
        layers.append(nn.Sequential(both, Shuffle(2)))
        for _ in range(1, count):
            body = _per_channel(half, half, 1, first=True)
            layers.append(nn.Sequential(SecondHalf(body), Shuffle(2)))
        before = width
    return [*layers, conv(before, 1024, bias=True)], 1024


def _per_channel(before: int, width: int, stride: int, first: bool = False) -> nn.Sequential:
    """Make a 3x3 of each channel and a 1x1, with a 1x1 first if asked for."""
    layers = [conv(before, before, bias=True)] if first else []
    depthwise = conv(before, before, 3, stride, groups=before, bias=True, act=None)
    return nn.Sequential(*layers, depthwise, conv(before, width, bias=True))


class SecondHalf(nn.Module):
    """A body for the second half of the channels; the first half stays."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([first, self.body(second)], 1)
