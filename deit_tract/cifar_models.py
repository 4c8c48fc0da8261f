"""The models of TrAct's CIFAR experiments, which timm has not; importing this module registers them with timm.

`vit_cifar` is the network of github.com/omihub777/ViT-CIFAR, `resnet18_cifar` that of the paper's own example
(github.com/Felix-Petersen/tract, examples/resnet_cifar10.py), `cifar_cnn` a small one that a CPU trains in minutes.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


def _config(first: str, classifier: str, fixed_size: bool = False) -> dict:
    shape = {"num_classes": 10, "input_size": (3, 32, 32), "fixed_input_size": fixed_size}
    return shape | {"first_conv": first, "classifier": classifier}


default_cfgs = generate_default_cfgs(
    {
        "vit_cifar.untrained": _config("patch_embed.proj", "head", fixed_size=True),
        "resnet18_cifar.untrained": _config("conv1", "fc"),
        "cifar_cnn.untrained": _config("conv1", "fc"),
    }
)


# ---- the vision transformer ------------------------------------------------------------------------------------------


class GeluMlp(Mlp):
    """timm's MLP with the activation after its second layer too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:.4g}"


class NormPatchEmbed(PatchEmbed):
    """timm's patch embedding of patches normalised one by one (the paper's Section 4.5).

    patch_norm "input": to mean 0 and standard deviation 1, nothing to learn. "dual": DualPatchNorm (Kumar et al. 2023,
    arXiv:2302.01327), LayerNorms with scale and shift before and after the linear layer.
    """

    def __init__(self, *args, patch_norm: str, **options):
        super().__init__(*args, **options)
        learned = patch_norm == "dual"
        self.before = nn.LayerNorm(self.proj.weight[0].numel(), elementwise_affine=learned)
        self.after = nn.LayerNorm(self.proj.out_channels) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        (batch, channels, *_), (height, width) = x.shape, self.patch_size
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)  # (b, n, c * h * w)
        patches = self.before(patches).reshape(-1, channels, height, width)  # each an image of its own
        return self.after(self.proj(patches).reshape(batch, self.num_patches, -1))


def _vit(patch_norm: str | None = None, **options) -> VisionTransformer:
    """ViT-CIFAR in timm's terms. Its three differences from timm's ViT: GELU after the second layer of each MLP,
    attention scaled by 1/sqrt(width) instead of 1/sqrt(width of a head), and start values: class token and position
    embedding from N(0, 1), linear layers as torch makes them.

    The reference reads a patch's pixels in the order (row, column, channel), a convolution in (channel, row, column):
    the same function with the first weight's columns permuted.
    """
    if patch_norm not in (None, "input", "dual"):
        raise ValueError(f"patch_norm is 'input', 'dual' or null, not {patch_norm!r}")
    embed = PatchEmbed if patch_norm is None else partial(NormPatchEmbed, patch_norm=patch_norm)
    net = VisionTransformer(
        embed_layer=embed, mlp_layer=GeluMlp, norm_layer=nn.LayerNorm, weight_init="skip", **options
    )
    for block in net.blocks:
        # timm's fused attention knows no other scale than a head's: the queries carry the rest
        block.attn.q_norm = Scale(1 / math.sqrt(block.attn.num_heads))
    nn.init.normal_(net.cls_token)
    nn.init.normal_(net.pos_embed)
    return net


@register_model
def vit_cifar(pretrained: bool = False, **options) -> VisionTransformer:
    """6,268,810 parameters for 10 classes of 32 px; `patch_norm` as of NormPatchEmbed."""
    settings = {"patch_size": 4, "embed_dim": 384, "depth": 7, "num_heads": 12, "mlp_ratio": 1.0} | options
    return build_model_with_cfg(_vit, "vit_cifar", pretrained, **settings)


# ---- convolutional networks ------------------------------------------------------------------------------------------


class CifarResNet(nn.Module):
    """torchvision's ResNet of basic blocks behind a 3x3 convolution of stride 1; the names of its weights are the same.

    pool: the stem's max-pool. widths, depths: channels and blocks of each stage, all but the first of stride 2.
    channels_last: the memory layout on a CPU, the faster one where channels are few.
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
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(stem), nn.ReLU(inplace=True), pool
        self.stages = []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            self.stages.append(f"layer{number}")
            self.add_module(self.stages[-1], _stage(stem if number == 1 else widths[number - 2], width, depth, number))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def _stage(before: int, width: int, depth: int, number: int) -> nn.Sequential:
    stride, shortcut = (1 if number == 1 else 2), None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    return nn.Sequential(
        BasicBlock(before, width, stride, shortcut), *(BasicBlock(width, width) for _ in range(1, depth))
    )


@register_model
def resnet18_cifar(pretrained: bool = False, **options) -> CifarResNet:
    """11,173,962 parameters for 10 classes. The max-pool stays, so that 32 px are 16 in the first stage."""
    settings = {"stem": 64, "widths": [64, 128, 256, 512], "depths": [2, 2, 2, 2]} | options
    return build_model_with_cfg(
        partial(CifarResNet, nn.MaxPool2d(3, 2, padding=1)), "resnet18_cifar", pretrained, **settings
    )


@register_model
def cifar_cnn(pretrained: bool = False, **options) -> CifarResNet:
    """A stem of 24 channels, a 2x2 max-pool and three basic blocks of 24, 48 and 96 channels."""
    settings = {"stem": 24, "widths": [24, 48, 96], "depths": [1, 1, 1], "channels_last": True} | options
    return build_model_with_cfg(partial(CifarResNet, nn.MaxPool2d(2)), "cifar_cnn", pretrained, **settings)
