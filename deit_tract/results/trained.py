"""A trained model and how it sees images: from a run, a file of weights, an exported folder or timm's hub.

The models have no TrAct and no drop path: neither changes what a model computes once it is trained.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.data.transforms import augment
from deit_tract.models.build import build_model
from deit_tract.models.weights import load_weights, read_weights
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Data, Recipe
from deit_tract.train import checkpoint


@dataclass
class Trained:
    """`net` is in eval mode on the CPU; `transform` makes a PIL image what it takes."""

    source: str  # as it was named
    name: str  # of the model
    net: nn.Module
    transform: Callable
    view: dict[str, Any]  # of schema.Data: image_size, channels, classes, mean, std
    crop: float
    recipe: Recipe | None = None
    weights: Path | None = None
    step: int | None = None

    def data(self, **values: Any) -> Data:
        """The settings of a data set seen by this model: the recipe's, those of the model, then `values`."""
        own = self.recipe.data.model_dump() if self.recipe else {}
        return Data(**(own | self.view | values))


@dataclass(frozen=True)
class Choice:
    """What the person asks for beside the source; None leaves it to the source."""

    model: str | None = None  # timm's name, for a file that does not tell
    recipe: str | None = None  # or the recipe that it is of
    ema: bool = False
    step: int | None = None
    image_size: int | None = None  # pixels
    crop: float | None = None


def find(source: str, choice: Choice = Choice()) -> Trained:
    """The model of RUN, a checkpoint's folder, FILE, an exported folder, or timm:NAME.

    Raises UserError where there is none, or it cannot be known which model the weights are of.
    """
    path = Path(source)
    if source.startswith("timm:"):
        _refuse(choice, source, "model", "recipe", "ema", "step")
        return _of_timm(source, source.removeprefix("timm:"), choice, pretrained=True)
    if (path / "config.json").is_file():
        _refuse(choice, source, "model", "recipe", "ema", "step")
        return _of_timm(source, f"local-dir:{path}", choice, pretrained=True)
    if (path / "progress.json").is_file() and (path.parent.parent / "recipe.yaml").is_file():
        _refuse(choice, source, "model", "recipe", "step")
        return of_run(
            path.parent.parent, replace(choice, step=int(path.name.removeprefix("step_"))), source
        )
    if (path / "recipe.yaml").is_file():
        _refuse(choice, source, "model", "recipe")
        return of_run(path, choice)
    if path.is_dir():
        raise UserError(
            source,
            "holds neither a run nor an exported model",
            "give a run's folder, a file or timm:NAME",
        )
    if not path.is_file():
        near = (
            "is it timm:NAME?"
            if timm.is_model(source)
            else "give a run's folder, a file of weights or timm:NAME"
        )
        raise UserError(source, "no such run or file", near)
    return _of_file(path, choice)


def _refuse(choice: Choice, source: str, *names: str) -> None:
    """An option that this kind of source cannot have."""
    for name in names:
        if getattr(choice, name):
            raise UserError(f"--{name}", f"{source} leaves no choice of it", f"leave out --{name}")


def of_run(folder: Path, choice: Choice = Choice(), source: str | None = None) -> Trained:
    """The model of a run's checkpoint, by default the newest whole one; reads the run's folder, changes nothing in it.

    Raises UserError where there is no such checkpoint.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(folder, "holds no run", "give a folder that train.py wrote")
    place = _checkpoint(folder, choice.step)
    weights = place / ("ema.safetensors" if choice.ema else "model.safetensors")
    if not weights.is_file():
        raise UserError(
            folder, "has no averaged weights", "leave out --ema; ema.decay of the recipe keeps them"
        )
    step = int(place.name.removeprefix("step_"))
    return _of_recipe(source or str(folder), folder / "recipe.yaml", weights, choice, step)


def _checkpoint(folder: Path, step: int | None) -> Path:
    checkpoints = folder / "checkpoints"
    if step is None:
        newest = checkpoint.newest(checkpoints, tidy=False)
        if newest is None:
            raise UserError(folder, "this run has no checkpoint yet")
        return newest
    place = checkpoints / f"step_{step:08d}"
    if not place.is_dir():
        there = sorted(
            int(path.name[5:]) for path in checkpoints.glob("step_*") if path.name[5:].isdigit()
        )
        raise UserError(
            folder,
            f"has no checkpoint of step {step}",
            f"it has {', '.join(map(str, there)) or 'none'}",
        )
    problem = checkpoint.verify(place)
    if problem is not None:
        raise UserError(place, f"is not whole ({problem})", "choose another step")
    return place


def plain(recipe: Recipe) -> Recipe:
    """The recipe without what matters in training alone, so that its model is built as timm builds it."""
    model = recipe.model.model_copy(
        update={"tract": None, "drop_path": 0.0, "class_token_std": None}
    )
    return recipe.model_copy(update={"model": model})


def _of_recipe(
    source: str, recipe: Path | str, weights: Path, choice: Choice, step: int | None = None
) -> Trained:
    asked = {"data.image_size": choice.image_size, "evaluate.crop": choice.crop}
    overrides = [f"{key}={value}" for key, value in asked.items() if value is not None]
    loaded = load_recipe(str(recipe), overrides)
    net = build_model(plain(loaded)).eval()
    load_weights(net, str(weights))
    view = loaded.data.model_dump(include={"image_size", "channels", "classes", "mean", "std"})
    transform, crop = augment.eval_transform(loaded), loaded.evaluate.crop
    return Trained(source, loaded.model.name, net, transform, view, crop, loaded, weights, step)


def _of_file(path: Path, choice: Choice) -> Trained:
    """A file of weights: the model is that of --model or --recipe, else of the export or the run that it lies in."""
    _refuse(choice, str(path), "ema", "step")
    if choice.model and choice.recipe:
        raise UserError(
            "command line",
            "--model and --recipe both say what the weights are of",
            "give one of them",
        )
    run = path.resolve().parents[2] if len(path.resolve().parents) > 2 else path.parent
    if choice.recipe:
        return _of_recipe(str(path), choice.recipe, path, choice)
    if choice.model:
        return _of_timm(str(path), choice.model, choice, weights=path)
    if (path.parent / "config.json").is_file():
        return _of_timm(str(path), f"local-dir:{path.parent}", choice, weights=path)
    if path.resolve().parent.parent.name == "checkpoints" and (run / "recipe.yaml").is_file():
        return _of_recipe(str(path), run / "recipe.yaml", path, choice)
    raise UserError(
        path,
        "does not say which model it is of",
        "give --model NAME of timm, or --recipe NAME|FILE",
    )


def _of_timm(
    source: str, name: str, choice: Choice, pretrained: bool = False, weights: Path | None = None
) -> Trained:
    """A model by timm's name, with timm's weights or a file's; its pretrained_cfg says how it sees images."""
    asked = {} if weights is None or name.startswith("local-dir:") else _shape(name, weights)
    net = _create(source, name, choice.image_size, pretrained, asked)
    if weights is not None:
        load_weights(net, str(weights))
    wanted = {"crop_pct": choice.crop}
    channels = getattr(net, "in_chans", None) or net.pretrained_cfg["input_size"][0]
    if choice.image_size:
        wanted["input_size"] = (channels, choice.image_size, choice.image_size)
    seen = resolve_model_data_config(
        net, wanted, use_test_size=True
    )  # as the published top-1 of timm's models is had
    if {len(seen["mean"]), len(seen["std"])} != {channels}:
        what = f"sees {channels} channels, and timm knows no mean and std of theirs"
        raise UserError(source, what, "give --recipe NAME|FILE")
    view = {"image_size": seen["input_size"][1], "channels": channels, "classes": net.num_classes}
    view |= {"mean": list(seen["mean"]), "std": list(seen["std"])}
    transform = create_transform(**seen, is_training=False)
    title = net.pretrained_cfg.get("architecture") or name
    return Trained(source, title, net.eval(), transform, view, seen["crop_pct"], weights=weights)


def _create(
    source: str, name: str, image_size: int | None, pretrained: bool, arguments: dict[str, int]
) -> nn.Module:
    """timm's model. Raises UserError on whatever timm and the hub raise."""
    if not name.startswith(("local-dir:", "hf-hub:")) and not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            source,
            f"timm has no model '{name}'",
            f"did you mean {', '.join(near)}?" if near else "",
        )
    try:
        if image_size:
            with torch.device("meta"):
                fixed = timm.create_model(name).pretrained_cfg.get("fixed_input_size")
            arguments = arguments | ({"img_size": image_size} if fixed else {})
        net = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # of timm, the hub, a file's format
        what = f"timm cannot load {name} ({' '.join(str(error).split())[:200]})"
        raise UserError(source, what) from None
    if not net.num_classes:
        raise UserError(source, f"{name} has no classifier", "choose weights with one")
    return net


def _shape(name: str, weights: Path) -> dict[str, int]:
    """The arguments of timm.create_model that a file's tensors tell: classes and channels."""
    tensors, config = (
        read_weights(str(weights)),
        timm.get_pretrained_cfg(name, allow_unregistered=True),
    )
    if config is None:
        return {}
    places = {"num_classes": (config.classifier, 0), "in_chans": (config.first_conv, 1)}
    found = {key: (tensors.get(f"{layer}.weight"), axis) for key, (layer, axis) in places.items()}
    return {key: tensor.shape[axis] for key, (tensor, axis) in found.items() if tensor is not None}
