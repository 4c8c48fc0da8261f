"""Start weights of the detector: VGG-16 trained on ImageNet, or a detector's own."""

import math
from argparse import Namespace
from pickle import UnpicklingError

import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.models import get_weight

from deit_tract import tract  # noqa: F401
from deit_tract.common.errors import UserError

# cifar_models registers its models with timm
from deit_tract.models import detector
from deit_tract.models.detector import Detector


def load_weights(model: nn.Module, source: str, new_head: bool = False) -> None:
    """Load a file of weights, or `timm:NAME` from timm's hub, into a model built by `build`.

    Takes timm's and DeiT-III's names (gamma_1 for ls1.gamma), bare or under "model"; resizes the position embedding.
    With `new_head` the classifier stays as it is. Raises UserError on any other missing or unexpected key or shape.
    A detector may start from VGG-16's weights (`detector_weights`).
    """
    if isinstance(model, detector.Detector):
        return _load_detector_weights(model, read_tensors(source), source)
    weights = read_weights(source)
    if isinstance(weights.get("pos_embed"), Tensor):
        weights["pos_embed"] = _resized_pos_embed(weights["pos_embed"], model)
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
            instead = (
                "set model.new_head=true for other classes"
                if only_head
                else "is it of another model?"
            )
            raise UserError(source, f"{what} {listed}", instead)
    model.load_state_dict(weights, strict=not head)


def read_weights(source: str) -> dict[str, Tensor]:
    """The weights of a file or of `timm:NAME`, under timm's names. Raises UserError where there are none."""
    return {_timm_name(key): value for key, value in read_tensors(source).items()}


def read_tensors(source: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file, or of timm's or torchvision's hub, by name."""
    try:
        if source.startswith("timm:"):
            return timm.create_model(source.removeprefix("timm:"), pretrained=True).state_dict()
        if source.startswith("torchvision:"):
            return get_weight(source.removeprefix("torchvision:")).get_state_dict(
                progress=False, check_hash=True
            )
        if source.endswith(".safetensors"):
            return load_file(source)
        with torch.serialization.safe_globals(
            [Namespace]
        ):  # DeiT's main.py stores its arguments beside the weights
            content = torch.load(source, "cpu", weights_only=True)
    except UnpicklingError:  # whose text advises to load it with weights_only=False
        reason = "broken, or it holds more than weights and plain values; nothing of it was run"
        raise UserError(
            source, f"cannot be read as weights ({reason})", "save its state_dict alone"
        ) from None
    except Exception as error:  # whatever the format's reader or the hub raises
        raise UserError(
            source, f"cannot be read as weights ({' '.join(str(error).split())[:200]})"
        ) from None
    weights = (
        content.get("model", content.get("state_dict", content))
        if isinstance(content, dict)
        else {}
    )
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(
            source, "holds no weights", "expected names and tensors, bare or under 'model'"
        )
    return weights


def _timm_name(key: str) -> str:
    """timm's name of a DeiT-III weight (DeiT models_v2.py Layer_scale_init_Block)."""
    return key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")


def _resized_pos_embed(table: Tensor, model: nn.Module) -> Tensor:
    """A position embedding (1, tokens, width) for the model's patch grid, bicubic without antialiasing as DeiT's."""
    prefix = (
        0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    )
    side = math.isqrt(table.shape[1] - prefix)
    if table.ndim != 3 or side**2 != table.shape[1] - prefix:
        return table  # no square grid of this model: its shape is refused below
    grid = list(model.patch_embed.grid_size)
    return resample_abs_pos_embed(
        table, grid, [side, side], prefix, interpolation="bicubic", antialias=False
    )


# Where torchvision's VGG-16 and timm's have what the detector's head begins with; their last layer is left out
LINEAR = {
    "classifier.0": "roi_heads.box_head.fc6",
    "classifier.3": "roi_heads.box_head.fc7",
    "pre_logits.fc1": "roi_heads.box_head.fc6",
    "pre_logits.fc2": "roi_heads.box_head.fc7",
}
LAST = ("classifier.6.", "head.fc.")


def _load_detector_weights(net: Detector, weights: dict[str, Tensor], source: str) -> None:
    """Load a detector's state dict whole, or VGG-16's: convolutions, fc6 and fc7, the rest staying as initialised.

    Raises UserError on any missing or unexpected key or shape, and on a classifier without numbers.
    """
    own = net.state_dict()
    if not any(key.startswith("backbone.") for key in weights):
        weights = _from_vgg(weights, source)
        own = {
            key: value
            for key, value in own.items()
            if key.startswith(("backbone.", "roi_heads.box_head."))
        }
    problems = {
        "lacks": own.keys() - weights.keys(),
        "has unexpected": weights.keys() - own.keys(),
        "has other shapes for": [
            key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape
        ],
    }
    for what, keys in problems.items():
        if keys:
            listed = ", ".join(sorted(keys)[:5]) + (" ..." if len(keys) > 5 else "")
            instead = "wanted is VGG-16 without batch normalisation, or a detector of these classes"
            raise UserError(source, f"{what} {listed}", instead)
    net.load_state_dict(weights, strict=False)


def _from_vgg(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """VGG-16's weights under the detector's names; timm keeps its linear layers as convolutions."""
    renamed = {}
    for key, value in weights.items():
        module, _, name = key.rpartition(".")
        if key.startswith(LAST):
            continue
        if module in LINEAR:
            module, value = LINEAR[module], value.flatten(1) if name == "weight" else value
            if not value.isfinite().all():
                what = f"{key} holds no numbers: these weights are of the convolutions alone"
                raise UserError(source, what, "use VGG16_Weights.IMAGENET1K_V1")
        renamed[f"{module.replace('features.', 'backbone.')}.{name}"] = value
    return renamed
