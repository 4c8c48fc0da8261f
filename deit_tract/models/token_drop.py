"""A ViT that trains on some of the patches; which ones is handed in."""

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit_tract.common.device import send
from deit_tract.common.errors import UserError


class TokenDrop(nn.Module):
    """Keeps the prefix tokens and, in training, `tokens` patches of each image in their order.

    prefix: number of class and register tokens, which come first.
    patches: number of patches of an image.
    tokens: None keeps all patches.
    """

    def __init__(self, prefix: int, patches: int):
        super().__init__()
        self.prefix, self.patches = prefix, patches
        self.tokens: int | None = None
        self.kept: Tensor | None = None  # (b, tokens): positions among the patches, rising

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.tokens is None:
            return x
        kept = self.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :].gather(1, kept)], dim=1)

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}"


def set_tokens(net: nn.Module, tokens: int | None) -> None:
    """Set how many patches of each image the model is trained on; None: all.

    They are dropped after the embedding, so a TrAct layer sees all. Nothing is dropped in
    evaluation. Raises UserError if the model is not timm's ViT with a class token, or has fewer
    patches.
    """
    layer = getattr(net, "patch_drop", None)
    if tokens is not None and type(layer) is not TokenDrop:
        layer = net.patch_drop = _token_drop(net, layer)
    if tokens is not None and not 1 <= tokens <= layer.patches:
        what = f"{tokens} tokens of {layer.patches} patches"
        raise UserError("curriculum.tokens", what, f"give 1 to {layer.patches}")
    if type(layer) is TokenDrop:
        layer.tokens = None if tokens == layer.patches else tokens


def _token_drop(net: nn.Module, present: nn.Module | None) -> TokenDrop:
    """The layer for a ViT without one."""
    if not isinstance(net, VisionTransformer) or net.cls_token is None:
        what = f"{type(net).__name__} cannot drop tokens, only timm's ViT with a class token"
        raise UserError("curriculum.tokens", what, "set it to null")
    if not isinstance(present, nn.Identity):
        what = "the model drops tokens already (model.args.patch_drop_rate)"
        raise UserError("curriculum.tokens", what, "set one of them to null")
    return TokenDrop(net.num_prefix_tokens, net.patch_embed.num_patches)


def draw_tokens(
    layers: list[TokenDrop], batch: int, seed: int | Sequence[int], device: torch.device
) -> None:
    """Draw which patches the next forward keeps, on the CPU, and hand them to the layers.

    seed: of one lane of `batch` samples, or of several such lanes one after the other.
    """
    for layer in layers:
        if layer.tokens is None:
            continue
        seeds = [seed] if isinstance(seed, int) else seed
        generators = [torch.Generator().manual_seed(each) for each in seeds]
        draws = [torch.rand(batch, layer.patches, generator=each) for each in generators]
        kept = torch.cat(draws).argsort(1)[:, : layer.tokens].sort(1).values
        layer.kept = send(kept, device)
