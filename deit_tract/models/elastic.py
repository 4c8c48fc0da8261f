"""Transformers that are trained with few heads and hidden units first: timm's ViT, Swin, PVTv2.

What is asleep is exactly zero in the full-size parameter, and the forward pass leaves it out. Zero
is a fixed point of training: gradient, moments, weight decay and EMA stay zero. No optimizer needs
a mask, and the weights are at any time those of the plain timm model, which computes the same.

Parts of a block: a head (rows of q, k and v, columns of proj, Swin's column of the bias table) and
a hidden unit (row of fc1, channel of PVTv2's depthwise convolution, column of fc2). The first ones
are awake. Everything else always is: embeddings, norms, LayerScale, biases of proj and fc2.

    prepare(net); start = a copy of the state dict; set_rates(net, 1/3, 1/4); put_to_sleep(net)
    ...train...; wake(net, 2/3, 1/2, start); ...train...
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from timm.layers import Mlp
from timm.models import pvt_v2
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.models.narrow import (
    NarrowDepthwise,
    NarrowLinear,
    NarrowPvtAttention,
    NarrowWindowAttention,
)

MODELS = (VisionTransformer, SwinTransformer, pvt_v2.PyramidVisionTransformerV2)
BLOCKS = (Block, SwinTransformerBlock, pvt_v2.Block)
ATTENTION = (Attention, WindowAttention, pvt_v2.Attention)
MLPS = (Mlp, pvt_v2.MlpWithDepthwiseConv)
FULL = (1.0, 1.0)  # rates of heads and hidden units
INSTEAD = "set it and curriculum.hidden to null"
HIDDEN_STEP = 8  # awake hidden units are a multiple of it: what a GPU's matrix units take

# ---- which parts are awake -----------------------------------------------------------------------


def prepare(net: nn.Module) -> None:
    """Make a timm ViT, Swin or PVTv2 elastic, in place; all parts stay awake.

    Call it before the model is wrapped or copied. At full rates forward and gradients are timm's to
    the bit. Raises UserError for other models, and for blocks that cannot be cut.
    """
    if not isinstance(net, MODELS):
        what = f"{type(net).__name__} cannot be cut, only timm's ViT, Swin and PVTv2"
        raise UserError("curriculum.heads", what, INSTEAD)
    blocks = list(_blocks(net))
    for name, block in blocks:
        reason = _uncuttable(block)
        if reason is not None:
            what = f"{name} of {type(net).__name__} cannot be cut ({reason})"
            raise UserError("curriculum.heads", what, INSTEAD)
    for _, block in blocks:
        attn, mlp = block.attn, block.mlp
        attn.all_heads = attn.num_heads
        if type(attn) is WindowAttention:
            attn.__class__ = NarrowWindowAttention
        if type(attn) is pvt_v2.Attention:
            attn.__class__ = NarrowPvtAttention
        for layer, parts in [*_inputs(attn), (attn.proj, 1), (mlp.fc1, 1), (mlp.fc2, 1)]:
            layer.__class__ = NarrowLinear
            layer.parts = parts
        if isinstance(mlp, pvt_v2.MlpWithDepthwiseConv):
            mlp.dwconv.__class__ = NarrowDepthwise
    net.awake_rates = FULL


def set_rates(net: nn.Module, heads: float, hidden: float) -> None:
    """Set the share of heads and hidden units in the forward pass; parameters are not touched.

    Both rates are above 0 and at most 1; numbers are rounded up (`awake_heads`, `awake_hidden`).
    """
    net.awake_rates = heads, hidden
    for _, block in _blocks(net):
        attn, mlp = block.attn, block.mlp
        attn.num_heads = awake_heads(heads, attn.all_heads)
        width = attn.proj.in_features // attn.all_heads * attn.num_heads
        if isinstance(attn, Attention):
            attn.attn_dim = width
        part = None if attn.num_heads == attn.all_heads else width
        for layer, _ in _inputs(attn):
            layer.rows = part
        attn.proj.columns = part
        units = awake_hidden(hidden, mlp.fc2.in_features)
        part = None if units == mlp.fc2.in_features else units
        mlp.fc1.rows = part
        mlp.fc2.columns = part
        if isinstance(mlp, pvt_v2.MlpWithDepthwiseConv):
            mlp.dwconv.rows = part


def awake_heads(rate: float, heads: int) -> int:
    """Return how many of a block's heads are awake: 1/3 of 1, 2, 5, 8 is 1, 1, 2, 3."""
    return max(math.ceil(rate * heads - 1e-6), 1)


def awake_hidden(rate: float, units: int) -> int:
    """Return how many of a block's hidden units are awake: a multiple of 8, or all."""
    steps = max(math.ceil(rate * units / HIDDEN_STEP - 1e-6), 1)
    return min(steps * HIDDEN_STEP, units)


@contextmanager
def full_rates(net: nn.Module) -> Iterator[None]:
    """Compute with all parts: evaluation measures the plain timm model with the run's weights."""
    rates = net.awake_rates
    set_rates(net, *FULL)
    try:
        yield
    finally:
        set_rates(net, *rates)


# ---- putting to sleep and waking -----------------------------------------------------------------


class Asleep(NamedTuple):
    """The part of a parameter that is asleep."""

    mask: Tensor  # True where asleep; broadcasts to the parameter's shape
    computes: bool  # what a part computes with; False: columns that take its output


def asleep(net: nn.Module) -> dict[str, Asleep]:
    """Return by name the parameters of which something is asleep at the current rates.

    It reads no parameter, so it also works where ZeRO-3 has taken them apart.
    """
    parts = {}
    for name, layer in net.named_modules():
        if isinstance(layer, NarrowLinear) and layer.rows is not None:
            rows = torch.arange(layer.out_features) % (layer.out_features // layer.parts)
            parts |= _rows(name, layer, rows >= layer.rows)
        if isinstance(layer, NarrowLinear) and layer.columns is not None:
            columns = torch.arange(layer.in_features) >= layer.columns
            parts[f"{name}.weight"] = Asleep(columns[None, :], computes=False)
        if isinstance(layer, NarrowDepthwise) and layer.rows is not None:
            parts |= _rows(name, layer, torch.arange(layer.out_channels) >= layer.rows)
        if isinstance(layer, NarrowWindowAttention) and layer.num_heads < layer.all_heads:
            heads = torch.arange(layer.all_heads) >= layer.num_heads
            table = f"{name}.relative_position_bias_table"
            parts[table] = Asleep(heads[None, :], computes=True)
    return parts


def _rows(name: str, layer: nn.Linear | nn.Conv2d, mask: Tensor) -> dict[str, Asleep]:
    """What is asleep in a layer's weight and bias if rows are."""
    dims = 4 if isinstance(layer, nn.Conv2d) else 2
    parts = {f"{name}.weight": Asleep(mask.view(-1, *[1] * (dims - 1)), computes=True)}
    if layer.bias is not None:
        parts[f"{name}.bias"] = Asleep(mask, computes=True)
    return parts


@torch.no_grad()
def put_to_sleep(net: nn.Module) -> None:
    """Set to zero what is asleep at the current rates: once, before the first step."""
    for name, part in asleep(net).items():
        parameter = net.get_parameter(name)
        parameter.masked_fill_(part.mask.to(parameter.device), 0.0)


def woken(net: nn.Module, heads: float, hidden: float) -> dict[str, Tensor]:
    """Set higher rates; return masks, by name, of what is to take its start value.

    Only what computes does. The columns that take the output of a woken part stay zero, so the
    model's function is the same before and after.
    """
    before = asleep(net)
    set_rates(net, heads, hidden)
    after = asleep(net)
    masks = {name: part.mask for name, part in before.items() if part.computes}
    return {name: mask & ~after[name].mask if name in after else mask
            for name, mask in masks.items()}  # fmt: skip


@torch.no_grad()
def wake(
    net: nn.Module,
    heads: float,
    hidden: float,
    start: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
) -> None:
    """Set higher rates and give what wakes its start values, in the model and in its EMA.

    start: the state dict of the model as built from the recipe's seed. An entry begins as it would
    have in a run at full rates.
    """
    for name, mask in woken(net, heads, hidden).items():
        copies = [net.get_parameter(name)] + ([] if ema is None else [ema[name]])
        for copy in copies:
            value = start[name].to(copy)
            copy.copy_(torch.where(mask.to(copy.device), value, copy))


# ---- what timm's blocks consist of ---------------------------------------------------------------


def _blocks(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The transformer blocks with their names."""
    for name, layer in net.named_modules():
        if name.rpartition(".")[0].rpartition(".")[2] == "blocks":
            yield name, layer


def _inputs(attn: nn.Module) -> list[tuple[nn.Module, int]]:
    """Layers that make queries, keys and values, each with how many of these it makes."""
    if isinstance(attn, pvt_v2.Attention):
        return [(attn.q, 1), (attn.kv, 2)]
    return [(attn.qkv, 3)]


def _uncuttable(block: nn.Module) -> str | None:
    """Why a block cannot be cut; None if it can."""
    if not isinstance(block, BLOCKS):
        return f"a {type(block).__name__}"
    attn, mlp = block.attn, block.mlp
    for layer, known in ((attn, ATTENTION), (mlp, MLPS)):
        if type(layer) not in known:
            return f"it has {type(layer).__name__}"
    gated = getattr(attn, "gate", None) is not None
    if isinstance(attn, Attention) and (gated or not isinstance(attn.norm, nn.Identity)):
        return "its attention has a gate, or a norm over all heads"
    if isinstance(mlp, Mlp) and not isinstance(mlp.norm, nn.Identity):
        return "its MLP has a norm over all hidden units"
    layers = [attn.proj, mlp.fc1, mlp.fc2, *(layer for layer, _ in _inputs(attn))]
    others = [type(layer).__name__ for layer in layers if type(layer) is not nn.Linear]
    return f"it has {others[0]} in place of Linear" if others else None
