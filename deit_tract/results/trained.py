"""A trained model and how it sees images: from a run, a file, an exported folder or timm's hub.

The models have no TrAct and no drop path: neither changes what a trained model computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.common.text import brief
from deit_tract.data.transforms import augment
from deit_tract.models.build import build_model
from deit_tract.models.detector import Detector
from deit_tract.models.names import no_such_model
from deit_tract.models.weights import Weights, load_weights, read_weights
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Data, Recipe
from deit_tract.train.records import read_export
from deit_tract.train.weights_source import WeightsSource, find_weights, recipe_of_run


@dataclass
class Trained:
    """A model in eval mode on the CPU; `transform` prepares a PIL image for it."""

    source: WeightsSource
    name: str  # of the model
    net: nn.Module
    transform: Callable
    view: dict[str, Any]  # of the data settings: image_size, channels, classes, mean, std
    crop: float
    recipe: Recipe | None = None

    @property
    def step(self) -> int | None:
        return self.source.step

    def data(self, **values: Any) -> Data:
        """Return a data set's settings for this model: the recipe's, the model's, then `values`."""
        own = self.recipe.data.model_dump() if self.recipe else {}
        return Data(**(own | self.view | values))


@dataclass(frozen=True)
class Choice:
    """What a person asks for beside the source; None leaves it to the source."""

    model: str | None = None  # timm's name, for a file that does not tell
    recipe: str | None = None  # or the recipe it was trained by
    ema: bool = False
    best: bool = False  # the weights of the best evaluation
    step: int | None = None
    image_size: int | None = None  # pixels
    crop: float | None = None


DECIDED = {  # choices that a kind of source does not leave
    "hub": ("model", "recipe", "ema", "best", "step"),
    "export": ("model", "recipe", "ema", "best", "step"),
    "run": ("model", "recipe"),
    "checkpoint": ("model", "recipe", "best", "step"),
    "folder": ("ema", "best", "step"),
    "file": ("ema", "best", "step"),
}


def load_trained(given: str, choice: Choice = Choice()) -> Trained:
    """Load the model of RUN, a checkpoint's folder, FILE, an exported folder, or timm:NAME.

    Changes nothing in a run's folder. Raises UserError if there is no such model, or if it cannot
    be known which model the weights belong to.
    """
    source = find_weights(given, choice.step, choice.ema, choice.best)
    for name in DECIDED[source.kind]:
        if getattr(choice, name):
            what = f"{given} leaves no choice of it"
            raise UserError(f"--{name}", what, f"leave out --{name}")
    if choice.model and choice.recipe:
        what = "--model and --recipe both say what the weights are of"
        raise UserError("command line", what, "give one of them")
    if source.kind in ("run", "checkpoint"):
        return _of_recipe(source, recipe_of_run(source.run), choice)
    if source.kind == "hub":
        return _of_hub(source, choice)
    if choice.recipe:
        return _of_recipe(source, choice.recipe, choice)
    if choice.model:
        return _of_timm(source, choice.model, choice, source.weights)
    if source.exported:
        read_export(source.exported)  # what is broken in it is named better than by timm
        weights = source.weights if source.kind == "file" else None
        return _of_timm(source, f"local-dir:{source.exported}", choice, weights)
    if source.recipe:
        return _of_recipe(source, source.recipe, choice)
    instead = "give --model NAME of timm, or --recipe NAME|FILE"
    raise UserError(given, "does not say which model it is of", instead)


def _of_hub(source: WeightsSource, choice: Choice) -> Trained:
    hub, _, name = source.given.partition(":")
    if hub != "timm":
        raise UserError(source.given, f"{hub} has weights to start from only", "give timm:NAME")
    return _of_timm(source, name, choice)


def plain(recipe: Recipe) -> Recipe:
    """Remove what matters in training only, so that the model is built as timm builds it."""
    without = {"tract": None, "drop_path": 0.0, "class_token_std": None, "checkpointing": False}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=without)})


def _of_recipe(source: WeightsSource, recipe: Path | str, choice: Choice) -> Trained:
    asked = {"data.image_size": choice.image_size, "evaluate.crop": choice.crop}
    overrides = [f"{key}={value}" for key, value in asked.items() if value is not None]
    loaded = load_recipe(str(recipe), overrides)
    net = build_model(plain(loaded)).eval()
    _check_size(net, loaded.data.channels, choice.image_size)
    load_weights(net, source.weights)
    view = loaded.data.model_dump(include={"image_size", "channels", "classes", "mean", "std"})
    transform = augment.eval_transform(loaded)
    return Trained(source, loaded.model.name, net, transform, view, loaded.evaluate.crop, loaded)


def _of_timm(
    source: WeightsSource, name: str, choice: Choice, weights: str | None = None
) -> Trained:
    """Make a model by timm's name, with timm's weights or a file's.

    Its pretrained_cfg tells how it sees images.
    """
    shape = {} if weights is None or name.startswith("local-dir:") else _shape(name, weights)
    net = _create(source.given, name, choice.image_size, pretrained=weights is None, **shape)
    if weights is not None:
        load_weights(net, weights)
    asked: dict[str, Any] = {"crop_pct": choice.crop}
    channels = getattr(net, "in_chans", None) or net.pretrained_cfg["input_size"][0]
    _check_size(net.eval(), channels, choice.image_size)
    if choice.image_size:
        asked["input_size"] = (channels, choice.image_size, choice.image_size)
    # the test size is that of timm's published top-1
    seen = resolve_model_data_config(net, asked, use_test_size=True)
    if {len(seen["mean"]), len(seen["std"])} != {channels}:
        what = f"sees {channels} channels, and timm knows no mean and std of theirs"
        raise UserError(source.given, what, "give --recipe NAME|FILE")
    view = {
        "image_size": seen["input_size"][1],
        "channels": channels,
        "classes": net.num_classes,
        "mean": list(seen["mean"]),
        "std": list(seen["std"]),
    }
    transform = create_transform(**seen, is_training=False)
    title = net.pretrained_cfg.get("architecture") or name
    return Trained(source, title, net.eval(), transform, view, seen["crop_pct"])


@torch.inference_mode()
def _check_size(net: nn.Module, channels: int, image_size: int | None) -> None:
    """Raise UserError if a model in eval mode cannot take images of the size that is asked for."""
    if image_size is None or isinstance(net, Detector):
        return
    try:
        net(torch.zeros(1, channels, image_size, image_size))
    except Exception as error:  # whatever the model's layers raise
        what = f"the model cannot take it ({brief(error)})"
        raise UserError(f"--image-size {image_size}", what, "leave it out") from None


def _create(given: str, name: str, image_size: int | None, **arguments: Any) -> nn.Module:
    """Create timm's model. Raises UserError on whatever timm and the hub raise."""
    if not name.startswith(("local-dir:", "hf-hub:")) and not timm.is_model(name.partition(".")[0]):
        raise UserError(given, *no_such_model(name))
    try:
        if image_size:
            with torch.device("meta"):
                fixed = timm.create_model(name).pretrained_cfg.get("fixed_input_size")
            if fixed:
                arguments["img_size"] = image_size
        net = timm.create_model(name, **arguments)
    except Exception as error:  # of timm, the hub, a file's format
        what = f"timm cannot load {name} ({brief(error)})"
        raise UserError(given, what) from None
    if not net.num_classes:
        raise UserError(given, f"{name} has no classifier", "choose weights with one")
    return net


def _shape(name: str, weights: str) -> dict[str, int]:
    """Read classes and channels, arguments of timm.create_model, off a file's tensors."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return {}
    tensors = read_weights(weights)
    places = {"num_classes": (config.classifier, 0), "in_chans": (config.first_conv, 1)}
    shapes = {key: (_shape_of(tensors, layer), axis) for key, (layer, axis) in places.items()}
    return {key: shape[axis] for key, (shape, axis) in shapes.items() if axis < len(shape)}


def _shape_of(tensors: Weights, layer: object) -> torch.Size:
    weight = tensors.get(f"{layer}.weight")
    return torch.Size() if weight is None else weight.shape
