"""Models: timm's by name, TrAct on the first layer, drop path as the recipe draws it, weights loaded strictly."""

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pickle import UnpicklingError

import timm
import torch
from safetensors.torch import load_file
from timm.layers import DropPath as TimmDropPath
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.models import get_weight

# cifar_models registers its models with timm
from deit_tract import cifar_models, detector, detector_weights, tract  # noqa: F401
from deit_tract.data.stream import derive, seed_generators
from deit_tract.device import send
from deit_tract.errors import UserError
from deit_tract.schema import Model, Recipe


def build(recipe: Recipe) -> nn.Module:
    """The recipe's model on the CPU, initialised from its seed. Raises UserError on what timm does not know."""
    if recipe.task == "detect":
        return detector.build(recipe)
    seed_generators(derive(recipe.seed, "init"))
    model, data = recipe.model, recipe.data
    if not timm.is_model(model.name):
        near = timm.list_models(f"*{model.name.split('_')[0]}*")[:3]
        raise UserError("model.name", f"timm has no model '{model.name}'", f"try {', '.join(near)}" if near else "")
    size = {"img_size": data.image_size} if _has_fixed_size(model.name) else {}
    try:
        net = timm.create_model(model.name, num_classes=data.classes, in_chans=data.channels, **(size | model.args))
    except Exception as error:  # whatever a model makes of arguments that it did not expect
        what = f"timm cannot build {model.name} ({type(error).__name__}: {error})"
        raise UserError("model.args", what) from None
    if model.class_token_std is not None:
        if getattr(net, "cls_token", None) is None:
            raise UserError("model.class_token_std", f"{model.name} has no class token", "set it to null")
        nn.init.trunc_normal_(net.cls_token, std=model.class_token_std)
    set_drop_path(net, model.drop_path, model.drop_path_mode)
    if model.tract is not None:
        _put_tract(net, model)
    freeze(net, model.train)
    return net


def _put_tract(net: nn.Module, model: Model) -> None:
    """net.patch_embed.proj = TrAct(net.patch_embed.proj), or whatever layer sees the images in another model."""
    try:
        tract.apply_to_first_layer(net, model.tract, gram=model.tract_gram)
    except (TypeError, ValueError) as error:
        raise UserError("model.tract", str(error), "set it to null, or choose another model") from None


def freeze(net: nn.Module, train: str) -> None:
    """Leave trainable what model.train says: "all", "head" (the classifier), or "attn".

    "attn" is the attention layers' weights and biases, the position embedding and the classifier, not the norms, MLPs,
    LayerScale, class token and patch embedding: Touvron et al. 2022, "Three things everyone should know about Vision
    Transformers", and DeiT's --attn-only. Raises UserError where a model has no such layers.
    """
    if train == "all":
        return
    names = [name for name, _ in net.named_parameters()]
    kept = [name for name in names if name.startswith(f"{net.pretrained_cfg['classifier']}.")]
    if train == "attn":
        attention = [name for name in names if ".attn." in name]
        if not attention:
            raise UserError("model.train", f"{type(net).__name__} has no attention layers", "use head or all")
        kept += [*attention, "pos_embed"]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in kept)


def _has_fixed_size(name: str) -> bool:
    """Whether a timm model is built for one image size, which `img_size` then sets."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


class DropPath(nn.Module):
    """Stochastic depth whose draws are handed in (`draw_drop_path`), so that no device's generator decides."""

    def __init__(self, rate: float, subset: bool = False):
        super().__init__()
        self.rate, self.subset = rate, subset
        self.scale: Tensor | None = None  # (b,): 0 where the branch is dropped, else 1 / (1 - rate)
        self.kept: Tensor | None = None  # with `subset` instead: the samples that keep the branch, rising

    def add(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """x plus a branch that is computed for the kept samples alone, weighted so that its mean is that of all."""
        out = branch(x.index_select(0, self.kept))
        return x.index_add(0, self.kept, out.to(x.dtype), alpha=len(x) / len(out))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class SubsetBlock(Block):
    """timm's ViT block whose branches are computed for the samples that keep them alone (DINOv2's block.py)."""

    def forward(self, x: Tensor, **attention) -> Tensor:
        if not self.training:
            return super().forward(x, **attention)
        x = self.drop_path1.add(x, lambda kept: self.ls1(self.attn(self.norm1(kept), **attention)))
        return self.drop_path2.add(x, lambda kept: self.ls2(self.mlp(self.norm2(kept))))


def set_drop_path(model: nn.Module, rate: float, mode: str = "mask") -> None:
    """Give every residual branch the same rate (DeiT models_v2.py; timm's own rises linearly with depth).

    Raises UserError where a rate is asked of a model without such branches, or mode "subset" of one without timm's
    ViT blocks, whose forward is replaced.
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
        raise UserError("model.drop_path", f"{type(model).__name__} has no drop path", "set it to 0")
    others = {type(parent).__name__ for parent, _ in places if type(parent) is not Block}
    if mode == "subset" and others:
        what = f"{type(model).__name__} has other blocks than timm's ViT ({', '.join(sorted(others))})"
        raise UserError("model.drop_path_mode", what, "set it to mask")
    for parent, name in places:
        setattr(parent, name, DropPath(rate, mode == "subset"))
        if mode == "subset":
            parent.__class__ = SubsetBlock


def draw_drop_path(layers: list[DropPath], batch: int, seed: int | Sequence[int], device: torch.device) -> None:
    """Draw what the next forward drops, on the CPU, and hand it to the layers.

    seed: of one lane of `batch` samples, or of several such lanes that stand one after the other in the forward.
    """
    if not layers:
        return
    seeds = [seed] if isinstance(seed, int) else seed
    draws = [torch.rand(len(layers), batch, generator=torch.Generator().manual_seed(each)) for each in seeds]
    keep = torch.tensor(1.0 - layers[0].rate)  # all layers have the same rate and mode
    if layers[0].subset:
        count = max(int(batch * (1.0 - layers[0].rate)), 1)  # as DINOv2
        values = [lane.argsort(1)[:, :count].sort(1).values + i * batch for i, lane in enumerate(draws)]
    else:
        values = [(lane < keep) / keep for lane in draws]
    for layer, value in zip(layers, send(torch.cat(values, dim=1), device), strict=True):
        setattr(layer, "kept" if layer.subset else "scale", value)


def explicit_attention(model: nn.Module) -> None:
    """Softmax written out in place of torch's fused attention: in bf16 on a CPU it is the faster one."""
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False


def couples_samples(model: nn.Module) -> str | None:
    """The name of a layer because of which lanes cannot share a forward; None where there is none.

    Batch normalisation takes statistics of all samples; dropout draws in the order of all samples.
    """
    for name, layer in model.named_modules():
        normalises = isinstance(layer, nn.modules.batchnorm._NormBase)
        draws = [getattr(layer, key, 0.0) for key in ("p", "prob", "drop_prob")]
        if normalises or any(isinstance(p, float) and p > 0 for p in draws):
            return f"{name} ({type(layer).__name__})"
    return None


def load_weights(model: nn.Module, source: str, new_head: bool = False) -> None:
    """Load a file of weights, or `timm:NAME` from timm's hub, into a model built by `build`.

    Takes timm's and DeiT-III's names (gamma_1 for ls1.gamma), bare or under "model"; resizes the position embedding.
    With `new_head` the classifier stays as it is. Raises UserError on any other missing or unexpected key or shape.
    A detector may start from VGG-16's weights (`detector_weights`).
    """
    if isinstance(model, detector.Detector):
        return detector_weights.load(model, _read(source), source)
    weights = read_weights(source)
    if isinstance(weights.get("pos_embed"), Tensor):
        weights["pos_embed"] = _resized(weights["pos_embed"], model)
    own = model.state_dict()
    head = f"{model.pretrained_cfg['classifier']}." if new_head else None
    if head:
        weights = {key: value for key, value in weights.items() if not key.startswith(head)}
        own = {key: value for key, value in own.items() if not key.startswith(head)}
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    problems = {
        "lacks": own.keys() - weights.keys(),
        "has unexpected": weights.keys() - own.keys(),
        "has other shapes for": shapes,
    }
    for what, keys in problems.items():
        if keys:
            listed = ", ".join(sorted(keys)[:5]) + (" ..." if len(keys) > 5 else "")
            only_head = all(key.startswith(model.pretrained_cfg["classifier"]) for key in keys)
            instead = "set model.new_head=true for other classes" if only_head else "is it of another model?"
            raise UserError(source, f"{what} {listed}", instead)
    model.load_state_dict(weights, strict=not head)


def read_weights(source: str) -> dict[str, Tensor]:
    """The weights of a file or of `timm:NAME`, under timm's names. Raises UserError where there are none."""
    return {_timm_name(key): value for key, value in _read(source).items()}


def _read(source: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file, or of timm's or torchvision's hub, by name."""
    try:
        if source.startswith("timm:"):
            return timm.create_model(source.removeprefix("timm:"), pretrained=True).state_dict()
        if source.startswith("torchvision:"):
            return get_weight(source.removeprefix("torchvision:")).get_state_dict(progress=False, check_hash=True)
        if source.endswith(".safetensors"):
            return load_file(source)
        with torch.serialization.safe_globals([Namespace]):  # DeiT's main.py stores its arguments beside the weights
            content = torch.load(source, "cpu", weights_only=True)
    except UnpicklingError:  # whose text advises to load it with weights_only=False
        reason = "broken, or it holds more than weights and plain values; nothing of it was run"
        raise UserError(source, f"cannot be read as weights ({reason})", "save its state_dict alone") from None
    except Exception as error:  # whatever the format's reader or the hub raises
        raise UserError(source, f"cannot be read as weights ({' '.join(str(error).split())[:200]})") from None
    weights = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(source, "holds no weights", "expected names and tensors, bare or under 'model'")
    return weights


def _timm_name(key: str) -> str:
    """timm's name of a DeiT-III weight (DeiT models_v2.py Layer_scale_init_Block)."""
    return key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")


def _resized(table: Tensor, model: nn.Module) -> Tensor:
    """A position embedding (1, tokens, width) for the model's patch grid, bicubic without antialiasing as DeiT's."""
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    side = math.isqrt(table.shape[1] - prefix)
    if table.ndim != 3 or side**2 != table.shape[1] - prefix:
        return table  # no square grid of this model: its shape is refused below
    grid = list(model.patch_embed.grid_size)
    return resample_abs_pos_embed(table, grid, [side, side], prefix, interpolation="bicubic", antialias=False)


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager:
    """The recipe's mixed precision for a forward pass."""
    kind = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[resolved(recipe).precision.autocast]
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with this machine's precision in place of "auto": what a run is and stays.

    bf16, which needs no gradient scaler; on CUDA GPUs without it fp16, in which the reference was trained.
    """
    if recipe.precision.autocast != "auto":
        return recipe
    half = "fp16" if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False) else "bf16"
    precision = recipe.precision.model_copy(update={"autocast": half})
    return recipe.model_copy(update={"precision": precision})
