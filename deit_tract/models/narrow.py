"""Layers of which only the first rows, columns, channels or heads are computed.

They are classes that `models/elastic.py` gives to the leaf modules of a timm model: parameters and
their names stay, and ZeRO-3, which gathers a parameter in its own module's hook, still works. With
nothing left out a layer calls timm's or torch's own forward.
"""

import torch.nn.functional as F
from timm.models import pvt_v2
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn


class NarrowLinear(nn.Linear):
    """A linear layer of which the first rows and columns are computed; None: all.

    Its rows are `parts` blocks one after the other (q, k, v), of each of which the first are awake.
    """

    parts = 1
    rows: int | None = None  # of each part
    columns: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None and self.columns is None:
            return super().forward(x)
        weight, bias = self.weight[:, : self.columns], self.bias
        if self.rows is not None:
            weight = self._first_rows(weight)
            bias = None if bias is None else self._first_rows(bias)
        return F.linear(x, weight, bias)

    def _first_rows(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (self.parts, -1))[:, : self.rows].flatten(0, 1)


class NarrowDepthwise(nn.Conv2d):
    """A depthwise convolution over the first `rows` channels; None: all."""

    rows: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None:
            return super().forward(x)
        weight, bias = self.weight[: self.rows], self.bias[: self.rows]
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.rows)


class NarrowWindowAttention(WindowAttention):
    """Swin's attention; timm's forward reads `num_heads`, only its bias has all heads."""

    def _get_rel_pos_bias(self) -> Tensor:
        bias = super()._get_rel_pos_bias()
        return bias if self.num_heads == self.all_heads else bias[:, : self.num_heads]


class NarrowPvtAttention(pvt_v2.Attention):
    """PVTv2's attention: timm's forward takes as many channels out of it as into it."""

    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        if self.num_heads == self.all_heads:
            return super().forward(x, feat_size)
        q = self.q(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        kv = self.kv(self._reduced(x, feat_size))
        k, v = kv.unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            out = self.attn_drop((q * self.scale @ k.transpose(-2, -1)).softmax(-1)) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def _reduced(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        """The tokens that keys and values are made of: fewer if there is a spatial reduction."""
        if self.sr is None:
            return x
        image = x.transpose(1, 2).unflatten(2, feat_size)
        image = self.sr(image if self.pool is None else self.pool(image))
        x = self.norm(image.flatten(2).transpose(1, 2))
        return x if self.act is None else self.act(x)
