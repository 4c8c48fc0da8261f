"""Weights from files and hubs, loaded strictly: every key and shape must match the model's."""

import math
import re
from argparse import Namespace
from collections.abc import Callable
from pickle import UnpicklingError

import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models import get_weight

from deit_tract.common.errors import UserError
from deit_tract.common.text import brief, listed, short
from deit_tract.models.detector import Detector
from deit_tract.models.names import no_such_model

Weights = dict[str, Tensor]
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
KNOWN = FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}

# Where VGG-16 of torchvision and of timm has the detector's linear layers; its last one is left out
LINEAR = {
    "classifier.0": "roi_heads.box_head.fc6",
    "classifier.3": "roi_heads.box_head.fc7",
    "pre_logits.fc1": "roi_heads.box_head.fc6",
    "pre_logits.fc2": "roi_heads.box_head.fc7",
}
LAST = ("classifier.6.", "head.fc.")


def load_weights(model: nn.Module, source: str, new_head: bool = False) -> None:
    """Load a file of weights, or `timm:NAME` from timm's hub, into a model of `build_model`.

    Takes timm's and DeiT-III's names (gamma_1 for ls1.gamma), bare or under "model"; resizes the
    position embedding. With `new_head` the classifier stays as it is. A detector may start from
    VGG-16. Raises UserError on any other missing or unexpected key or shape.
    """
    if isinstance(model, Detector):
        _load_detector_weights(model, read_tensors(source), source)
        return
    weights = read_weights(source)
    if "pos_embed" in weights:
        weights["pos_embed"] = _resized_pos_embed(weights["pos_embed"], model)
    own = model.state_dict()
    head = classifier_prefixes(model)
    if new_head:
        weights = {key: value for key, value in weights.items() if not key.startswith(head)}
        own = {key: value for key, value in own.items() if not key.startswith(head)}

    def advise(keys: list[str]) -> str:
        if all(key.startswith(head) for key in keys):
            return "set model.new_head=true for other classes"
        return "is it of another model, or for another image size?"

    check_fit(own, weights, source, advise)
    model.load_state_dict(weights, strict=not new_head)


def classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return how the names of the classifier's parameters begin; distilled models have two."""
    names = model.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def load_state(model: nn.Module, state: Weights, source: str) -> None:
    """Load a complete state dict. Raises UserError if it is not one of this model."""
    check_fit(model.state_dict(), state, source, lambda keys: "is it of another model?")
    model.load_state_dict(state)


def check_fit(
    own: Weights, weights: Weights, source: str, advise: Callable[[list[str]], str]
) -> None:
    """Raise UserError with the keys that are missing or unexpected, or whose tensors do not fit.

    A tensor fits if it has the shape and the kind (floating point or not) of the model's, and if
    all of its numbers are finite.
    """
    both = sorted(own.keys() & weights.keys())
    shapes = [key for key in both if own[key].shape != weights[key].shape]
    kinds = [key for key in both if own[key].dtype in FLOATS and weights[key].dtype not in FLOATS]
    kinds += [key for key in both if own[key].dtype not in FLOATS and weights[key].dtype in FLOATS]
    problems = {
        "lacks": own.keys() - weights.keys(),
        "has unexpected": weights.keys() - own.keys(),
        "has other shapes for": shapes,
        "has another kind of numbers for": kinds,
    }
    for what, keys in problems.items():
        if keys:
            raise UserError(source, f"{what} {listed(sorted(keys))}", advise(sorted(keys)))
    bad = [key for key in both if not _is_usable(weights[key])]
    if bad:
        what = f"contains NaN or infinity in {listed(bad)}"
        raise UserError(source, what, "use weights from before the run diverged")


def _is_usable(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def read_weights(source: str) -> Weights:
    """Read the weights of a file or of `timm:NAME` under timm's names. Raises UserError.

    DeiT-III's gamma_1 is ls1.gamma there (DeiT models_v2.py Layer_scale_init_Block).
    """
    weights = read_tensors(source)
    names = [re.sub("gamma_([12])", r"ls\1.gamma", key) for key in weights]
    found = dict(zip(names, weights.values(), strict=True))
    if len(found) < len(names):
        what = "has both of DeiT-III's gamma and timm's ls.gamma"
        raise UserError(source, what, "keep one of them")
    return found


def read_tensors(source: str) -> Weights:
    """Read the tensors of a .safetensors or .pth file, or of timm's or torchvision's hub, by name.

    Raises UserError if it cannot be read or holds anything else.
    """
    hub, _, name = source.partition(":")
    if hub == "timm" and not timm.is_model(name):
        raise UserError(source, *no_such_model(name))
    try:
        content = _read(source)
    except UnpicklingError:  # whose text advises to load it with weights_only=False
        what = "broken, or it holds more than weights and plain values; nothing of it was run"
        instead = "save only its state_dict"
        raise UserError(source, f"cannot be read as weights ({what})", instead) from None
    except Exception as error:  # whatever the format's reader or the hub raises
        raise UserError(source, f"cannot be read as weights ({brief(error)})") from None
    if isinstance(content, dict):
        content = content.get("model", content.get("state_dict", content))
    problem = _problem(content)
    if problem is not None:
        instead = "expected names and tensors, bare or under 'model'"
        raise UserError(source, f"holds no weights ({problem})", instead)
    return content


def _problem(content: object) -> str | None:
    """Return why a file's content is not named plain tensors in memory, or None."""
    if not isinstance(content, dict) or not content:
        return "it is empty" if content == {} else f"it is of type {type(content).__name__}"
    for key, value in content.items():
        if not isinstance(key, str):
            return f"a name is of type {type(key).__name__}"
        if not isinstance(value, Tensor):
            return f"{short(key)} is of type {type(value).__name__}"
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            kind = "quantized" if value.is_quantized else value.layout
            return f"{short(key)} is a {kind} tensor on {value.device.type}"
        if value.dtype not in KNOWN:
            return f"{short(key)} is of {value.dtype}"
        if value.nbytes > value.untyped_storage().nbytes():
            # a view of few numbers can claim any shape
            return f"{short(key)} claims more numbers than there are"
    return None


def _read(source: str) -> object:
    hub, _, name = source.partition(":")
    if hub == "timm":
        return timm.create_model(name, pretrained=True).state_dict()
    if hub == "torchvision":
        return get_weight(name).get_state_dict(progress=False, check_hash=True)
    if source.endswith(".safetensors"):
        return load_file(source)
    # DeiT's main.py stores its arguments beside the weights
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(source, "cpu", weights_only=True)


def _resized_pos_embed(table: Tensor, model: nn.Module) -> Tensor:
    """Resize a position embedding (1, tokens, width) to the model's patch grid.

    Bicubic without antialiasing, as DeiT's.
    """
    prefix = getattr(model, "num_prefix_tokens", 0)
    if getattr(model, "no_embed_class", False):
        prefix = 0
    own = getattr(model, "pos_embed", None)
    if own is None or table.ndim != 3 or table.dtype not in FLOATS:
        return table  # refused later, as what is below
    side = math.isqrt(max(table.shape[1] - prefix, 0))
    same_width = (table.shape[0], table.shape[2]) == (own.shape[0], own.shape[2])
    if not side or side**2 != table.shape[1] - prefix or not same_width:
        return table
    options = {"interpolation": "bicubic", "antialias": False}
    grid = list(model.patch_embed.grid_size)
    return resample_abs_pos_embed(table, grid, [side, side], prefix, **options)


def _load_detector_weights(net: Detector, weights: Weights, source: str) -> None:
    """Load a detector's complete state dict, or VGG-16's convolutions, fc6 and fc7.

    After VGG-16 the rest stays as initialised. Raises UserError on any missing or unexpected key or
    shape, and on a classifier that contains NaN.
    """
    own = net.state_dict()
    if not any(key.startswith("backbone.") for key in weights):
        weights = _from_vgg(weights, source)
        given = ("backbone.", "roi_heads.box_head.")
        own = {key: value for key, value in own.items() if key.startswith(given)}
    expected = "expected VGG-16 without batch normalisation, or a detector with the same classes"
    check_fit(own, weights, source, lambda keys: expected)
    net.load_state_dict(weights, strict=False)


def _from_vgg(weights: Weights, source: str) -> Weights:
    """Give VGG-16's weights the detector's names; timm keeps its linear layers as convolutions."""
    renamed = {}
    for key, value in weights.items():
        module, _, name = key.rpartition(".")
        if key.startswith(LAST):
            continue
        if module in LINEAR:
            module = LINEAR[module]
            value = value.flatten(1) if name == "weight" else value
            if not value.isfinite().all():
                what = f"{key} contains NaN: this file has weights for the convolutions only"
                raise UserError(source, what, "use VGG16_Weights.IMAGENET1K_V1")
        renamed[f"{module.replace('features.', 'backbone.')}.{name}"] = value
    return renamed
