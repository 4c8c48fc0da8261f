"""Shared by the tests of detector."""

import torch

from deit_tract.models import detector
from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import Recipe, load_recipe

NARROW = (
    "model.pretrained=false",
    "model.args.width=8",
    "model.args.fc=32",
    "data.name=synthetic",
    "data.image_size=128",
    "detect.max_size=200",
    "detect.anchor_sizes=[16, 32, 64]",
    "detect.rpn_min_size=1",
    "data.workers=0",
)


def load(*overrides: str, name: str = "voc2007_frcnn_vgg16") -> Recipe:
    return load_recipe(name, overrides)


def narrow(*overrides: str) -> detector.Detector:
    return build_model(load(*NARROW, *overrides))


# ---- weights -------------------------------------------------------------------------------------


def small_vgg(width: int = 8, fc: int = 32) -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names and the shapes of a narrow VGG-16."""
    net = narrow(f"model.args.width={width}", f"model.args.fc={fc}")
    state = {
        key.replace("backbone.", "features."): torch.randn_like(value)
        for key, value in net.state_dict().items()
        if key.startswith("backbone.")
    }
    for name, shape in (("0", (fc, 8 * width * 49)), ("3", (fc, fc)), ("6", (1000, fc))):
        state |= {
            f"classifier.{name}.weight": torch.randn(shape),
            f"classifier.{name}.bias": torch.randn(shape[0]),
        }
    return state
