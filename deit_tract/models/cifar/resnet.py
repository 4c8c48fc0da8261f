"""Convolutional networks of TrAct's CIFAR experiments, registered with timm.

`resnet18_cifar` is that of the paper's own example (github.com/Felix-Petersen/tract,
examples/resnet_cifar10.py), `cifar_cnn` a small one that a CPU trains in minutes.
"""

from functools import partial

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from deit_tract.models.cifar.config import cifar_cfg

NAMES = ("resnet18_cifar", "cifar_cnn")
default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": cifar_cfg("conv1", "fc") for name in NAMES}
)


class CifarResNet(nn.Module):
    """torchvision's ResNet of basic blocks behind a 3x3 convolution of stride 1, with its names.

    pool: the stem's max-pool. widths, depths: channels and blocks of each stage, all but the first
    of stride 2. channels_last: the memory layout on a CPU, which is faster if channels are few.
    """

    def __init__(
        self,
        pool: nn.Module,
        stem: int,
        widths: list[int],
        depths: list[int],
        num_classes: int = 10,
        in_chans: int = 3,
        channels_last: bool = False,
    ):
        super().__init__()
        self.num_classes, self.num_features = num_classes, widths[-1]
        self.channels_last = channels_last
        self.conv1 = nn.Conv2d(in_chans, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = pool
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        before = [stem, *widths[:-1]]
        for name, *shape in zip(self.stages, before, widths, depths, strict=True):
            self.add_module(name, _stage(*shape, stride=1 if name == "layer1" else 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the last stage's maps, as timm's models call it."""
        if self.channels_last and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits, or to what the classifier sees (b, num_features)."""
        x = self.avgpool(x).flatten(1)
        return x if pre_logits else self.fc(x)


def _stage(before: int, width: int, depth: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or before != width:
        convolution = nn.Conv2d(before, width, 1, stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(width))
    first = BasicBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(1, depth)))


@register_model
def resnet18_cifar(pretrained: bool = False, **options) -> CifarResNet:
    """ResNet-18, 11,173,962 parameters for 10 classes.

    The max-pool stays, so that 32 px are 16 in the first stage.
    """
    settings = {"stem": 64, "widths": [64, 128, 256, 512], "depths": [2, 2, 2, 2]} | options
    net = partial(CifarResNet, nn.MaxPool2d(3, 2, padding=1))
    return build_model_with_cfg(net, "resnet18_cifar", pretrained, **settings)


@register_model
def cifar_cnn(pretrained: bool = False, **options) -> CifarResNet:
    """A stem of 24 channels, a 2x2 max-pool and three basic blocks of 24, 48 and 96 channels."""
    settings = {"stem": 24, "widths": [24, 48, 96], "depths": [1, 1, 1]}
    settings |= {"channels_last": True} | options
    net = partial(CifarResNet, nn.MaxPool2d(2))
    return build_model_with_cfg(net, "cifar_cnn", pretrained, **settings)
