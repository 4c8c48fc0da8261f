"""The vision transformer of TrAct's CIFAR experiments: github.com/omihub777/ViT-CIFAR."""

import math
from functools import partial

import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit_tract.models.cifar.blocks import Multiply
from deit_tract.models.cifar.config import cifar_cfg

default_cfgs = generate_default_cfgs(
    {"vit_cifar.untrained": cifar_cfg("patch_embed.proj", "head", fixed_size=True)}
)


class GeluMlp(Mlp):
    """timm's MLP with the activation after its second layer too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class NormPatchEmbed(PatchEmbed):
    """timm's patch embedding of patches normalised one by one (the paper's Section 4.5).

    patch_norm "input": to mean 0 and standard deviation 1, nothing to learn. "dual": DualPatchNorm
    (Kumar et al. 2023, arXiv:2302.01327), LayerNorms with scale and shift before and after the
    linear layer.
    """

    def __init__(self, *args, patch_norm: str, **options):
        super().__init__(*args, **options)
        learned = patch_norm == "dual"
        self.before = nn.LayerNorm(self.proj.weight[0].numel(), elementwise_affine=learned)
        self.after = nn.LayerNorm(self.proj.out_channels) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        patches = F.unfold(x, self.patch_size, stride=self.patch_size)
        patches = self.before(patches.transpose(1, 2))  # (b, n, c * h * w)
        images = patches.reshape(-1, channels, *self.patch_size)  # each an image of its own
        return self.after(self.proj(images).reshape(batch, self.num_patches, -1))


def _vit(patch_norm: str | None = None, **options) -> VisionTransformer:
    """ViT-CIFAR in timm's terms.

    It differs from timm's ViT in a GELU after the second layer of each MLP, in attention scaled by
    1/sqrt(width) instead of 1/sqrt(width of a head), and in start values: class token and position
    embedding from N(0, 1), linear layers as torch makes them.

    The reference reads a patch's pixels in the order (row, column, channel), a convolution in
    (channel, row, column): the same function with the first weight's columns permuted.
    """
    if patch_norm not in (None, "input", "dual"):
        raise ValueError(f"patch_norm is 'input', 'dual' or null, not {patch_norm!r}")
    embed = PatchEmbed if patch_norm is None else partial(NormPatchEmbed, patch_norm=patch_norm)
    layers = {"embed_layer": embed, "mlp_layer": GeluMlp, "norm_layer": nn.LayerNorm}
    net = VisionTransformer(**layers, weight_init="skip", **options)
    for block in net.blocks:
        # timm's fused attention knows no other scale than a head's: the queries carry the rest
        block.attn.q_norm = Multiply(1 / math.sqrt(block.attn.num_heads))
    nn.init.normal_(net.cls_token)
    nn.init.normal_(net.pos_embed)
    return net


@register_model
def vit_cifar(pretrained: bool = False, **options) -> VisionTransformer:
    """ViT-CIFAR, 6,268,810 parameters for 10 classes of 32 px; `patch_norm`: NormPatchEmbed."""
    settings = {"patch_size": 4, "embed_dim": 384, "depth": 7, "num_heads": 12, "mlp_ratio": 1.0}
    return build_model_with_cfg(_vit, "vit_cifar", pretrained, **(settings | options))
