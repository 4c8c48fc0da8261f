"""Stochastic depth whose draws are handed in."""

from collections.abc import Callable, Sequence

import torch
from timm.layers import DropPath as TimmDropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from deit_tract.common.device import send
from deit_tract.common.errors import UserError


class DropPath(nn.Module):
    """Stochastic depth; `draw_drop_path` hands in its draws, so no device's generator decides."""

    def __init__(self, rate: float, subset: bool = False):
        super().__init__()
        self.rate, self.subset = rate, subset
        self.scale: Tensor | None = None  # (b,): 0 where the branch is dropped, else 1 / (1 - rate)
        # with `subset` instead: the samples that keep the branch, rising
        self.kept: Tensor | None = None

    def add(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add to x a branch computed only for the kept samples, weighted to keep its mean."""
        out = branch(x.index_select(0, self.kept))
        return x.index_add(0, self.kept, out.to(x.dtype), alpha=len(x) / len(out))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class SubsetBlock(Block):
    """timm's ViT block that computes a branch only for samples that keep it (DINOv2's block.py)."""

    def forward(self, x: Tensor, **attention) -> Tensor:
        if not self.training:
            return super().forward(x, **attention)
        x = self.drop_path1.add(x, lambda kept: self.ls1(self.attn(self.norm1(kept), **attention)))
        return self.drop_path2.add(x, lambda kept: self.ls2(self.mlp(self.norm2(kept))))


def set_drop_path(model: nn.Module, rate: float, mode: str = "mask", rule: str = "same") -> None:
    """Give residual branches their rates.

    Rule "same": one rate in every block (DeiT models_v2.py). Rule "rising": the rates that timm has
    given them already, where the first block's is 0. Mode "subset" replaces the forward of timm's
    ViT blocks. Raises UserError if the model has no such branches, or for "subset" other blocks.
    """
    if rate == 0.0:
        return
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name.startswith("drop_path") and isinstance(child, nn.Identity | TimmDropPath)
    ]
    if not places:
        what = f"{type(model).__name__} has no drop path"
        raise UserError("model.drop_path", what, "set it to 0")
    others = sorted({type(parent).__name__ for parent, _ in places if type(parent) is not Block})
    if mode == "subset" and others:
        what = f"{type(model).__name__} has other blocks than timm's ViT ({', '.join(others)})"
        raise UserError("model.drop_path_mode", what, "set it to mask")
    for parent, name in places:
        own = rate if rule == "same" else getattr(getattr(parent, name), "drop_prob", 0.0)
        if own == 0.0:
            continue  # timm's Identity: it draws nothing
        setattr(parent, name, DropPath(own, mode == "subset"))
        if mode == "subset":
            parent.__class__ = SubsetBlock  # adds no state: weights and their seeds stay


def draw_drop_path(
    layers: list[DropPath], batch: int, seed: int | Sequence[int], device: torch.device
) -> None:
    """Draw what the next forward drops, on the CPU, and hand it to the layers.

    seed: of one lane of `batch` samples, or of several such lanes one after the other.
    """
    if not layers:
        return
    seeds = [seed] if isinstance(seed, int) else seed
    generators = [torch.Generator().manual_seed(each) for each in seeds]
    draws = [torch.rand(len(layers), batch, generator=generator) for generator in generators]
    keep = torch.tensor([1.0 - layer.rate for layer in layers]).unsqueeze(1)
    if layers[0].subset:  # all layers have the same mode, and with this one the same rate
        count = max(int(batch * (1.0 - layers[0].rate)), 1)  # as DINOv2
        kept = [lane.argsort(1)[:, :count].sort(1).values for lane in draws]
        values = [rows + lane * batch for lane, rows in enumerate(kept)]
    else:
        values = [(lane < keep) / keep for lane in draws]
    for layer, value in zip(layers, send(torch.cat(values, dim=1), device), strict=True):
        setattr(layer, "kept" if layer.subset else "scale", value)
