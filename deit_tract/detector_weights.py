"""Start weights of the detector: VGG-16 trained on ImageNet, or a detector's own."""

from torch import Tensor

from deit_tract.detector import Detector
from deit_tract.errors import UserError

# Where torchvision's VGG-16 and timm's have what the detector's head begins with; their last layer is left out
LINEAR = {
    "classifier.0": "roi_heads.box_head.fc6",
    "classifier.3": "roi_heads.box_head.fc7",
    "pre_logits.fc1": "roi_heads.box_head.fc6",
    "pre_logits.fc2": "roi_heads.box_head.fc7",
}
LAST = ("classifier.6.", "head.fc.")


def load(net: Detector, weights: dict[str, Tensor], source: str) -> None:
    """Load a detector's state dict whole, or VGG-16's: convolutions, fc6 and fc7, the rest staying as initialised.

    Raises UserError on any missing or unexpected key or shape, and on a classifier without numbers.
    """
    own = net.state_dict()
    if not any(key.startswith("backbone.") for key in weights):
        weights = _from_vgg(weights, source)
        own = {key: value for key, value in own.items() if key.startswith(("backbone.", "roi_heads.box_head."))}
    problems = {
        "lacks": own.keys() - weights.keys(),
        "has unexpected": weights.keys() - own.keys(),
        "has other shapes for": [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape],
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
