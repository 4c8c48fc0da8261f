"""A trained model as timm's hub has them: model.safetensors with config.json and what goes with it.

The folder is written under a temporary name, and renamed once timm has loaded it and computed the
same logits from the same pixels.
"""

import json
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save as serialize
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors, write_atomic, write_through
from deit_tract.common.seeds import derive
from deit_tract.common.text import brief, listed
from deit_tract.data.sets.imagenet import synsets
from deit_tract.data.sets.load import load_validation
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.results.trained import Trained
from deit_tract.train.records import read_fingerprint

REQUIRED = {"model.safetensors", "config.json", "recipe.yaml"}
FILES = REQUIRED | {"README.md", "model.onnx", "model.onnx.data"}


def write(
    model: Trained, folder: Path, names: list[str] | None, card: str, onnx: bool = False
) -> None:
    """Make `folder`, or replace the export in it, from the model of a run.

    names: of the classes; card: text of README.md. Raises UserError if the folder has anything
    else, or if what timm makes of the export is not the model.
    """
    check_place(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(folder, "free some space or choose another folder"):
            part.mkdir(parents=True)
            state = {key: value.contiguous() for key, value in model.net.state_dict().items()}
            write_through(part / "model.safetensors", serialize(state, {"format": "pt"}))
            write_atomic(part / "config.json", json.dumps(config(model, names), indent=2) + "\n")
            write_atomic(part / "recipe.yaml", shared_recipe(model.source.recipe))
            write_atomic(part / "README.md", card)
            check_loads(model, part)
            if onnx:
                write_onnx(model, part / "model.onnx")
            _replace(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Raise UserError if a folder has anything but an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is a file", "name a folder")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - FILES or (there and not there >= REQUIRED):
        others = listed(sorted(there - FILES or there), 3)
        what = f"contains something other than an exported model ({others})"
        raise UserError(folder, what, "choose a new or an empty folder")


def _replace(folder: Path, part: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# ---- config.json and recipe.yaml -----------------------------------------------------------------


def config(model: Trained, names: list[str] | None) -> dict[str, Any]:
    """Return config.json, with no key unknown to timm 1.0.26, which refuses such a pretrained_cfg.

    model_args are passed to timm.create_model; dropout rates matter in training only and are left
    out.
    """
    net, recipe = model.net, model.recipe
    found: dict[str, Any] = {
        "architecture": recipe.model.name.partition(".")[0],
        "num_classes": model.view["classes"],
        "num_features": net.num_features,
    }
    if isinstance(getattr(net, "global_pool", None), str):
        found["global_pool"] = net.global_pool
    if names is not None:
        found |= _labels(names)
    arguments = recipe.model.args
    kept = [key for key in arguments if not ("drop" in key and "rate" in key)]
    if kept:
        found["model_args"] = {key: arguments[key] for key in kept}
    return found | {"pretrained_cfg": _pretrained_cfg(model)}


def _labels(names: list[str]) -> dict[str, Any]:
    info = ImageNetInfo()
    if not set(names) <= set(info.label_names()):
        return {"label_names": names}
    described = {name: info.label_name_to_description(name) for name in names}
    return {"label_names": names, "label_descriptions": described}


def _pretrained_cfg(model: Trained) -> dict[str, Any]:
    recipe, view, known = model.recipe, model.view, model.net.pretrained_cfg
    size = view["image_size"]
    return {
        "num_classes": view["classes"],
        "input_size": [view["channels"], size, size],
        "fixed_input_size": bool(known.get("fixed_input_size")),
        "interpolation": recipe.augment.interpolation,
        "crop_pct": recipe.evaluate.crop,
        "crop_mode": "center",
        "mean": view["mean"],
        "std": view["std"],
        "pool_size": None,
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
    }


def shared_recipe(file: Path) -> str:
    """Return a run's recipe without the data's folder on this machine.

    It is edited as text, since values read back would lose their origins.
    """
    text = file.read_text(encoding="utf-8")
    return re.sub("^  dir: .*$", "  dir: null", text, count=1, flags=re.MULTILINE)


# ---- what timm makes of it -----------------------------------------------------------------------


def sample(model: Trained, count: int = 2) -> Tensor:
    """Return noise (count, c, h, w) as input of the model."""
    channels, size = model.view["channels"], model.view["image_size"]
    generator = torch.Generator().manual_seed(derive(0, "export"))
    return torch.randn(count, channels, size, size, generator=generator)


@torch.inference_mode()
def check_loads(model: Trained, folder: Path) -> None:
    """Raise UserError unless timm loads the folder to equal weights, logits and pixels."""
    problem = _difference(model, folder)
    if problem is not None:
        what = f"cannot be exported exactly: {problem}"
        raise UserError(model.recipe.model.name, what, "nothing was written")


def _difference(model: Trained, folder: Path) -> str | None:
    try:
        other = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    except Exception as error:  # whatever timm raises
        return f"timm cannot load it ({brief(error)})"
    state, theirs = model.net.state_dict(), other.state_dict()
    if list(state) != list(theirs) or any(
        not torch.equal(state[key], theirs[key]) for key in state
    ):
        return "timm loads other weights from it"
    images = sample(model)
    if not torch.equal(model.net(images), other(images)):
        return "timm computes other logits from its weights"
    transform = create_transform(**resolve_model_data_config(other), is_training=False)
    for picture in _pictures(model):
        if not torch.equal(model.transform(picture), transform(picture)):
            return "timm prepares images differently"
    return None


def _pictures(model: Trained) -> list[Image.Image]:
    """Return images of noise, one wider and one higher than the model's images."""
    size = model.view["image_size"]
    mode = "RGB" if model.view["channels"] == 3 else "L"
    generator = np.random.default_rng(0)
    wide = generator.integers(256, size=(2 * size + 3, 3 * size + 1, 3), dtype=np.uint8)
    high = wide.transpose(1, 0, 2).copy()
    return [Image.fromarray(pixels).convert(mode) for pixels in (wide, high)]


# ---- ONNX ----------------------------------------------------------------------------------------


def check_onnx() -> None:
    """Raise UserError if a package that torch.onnx needs is missing."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        instead = f"pip install {' '.join(missing)}"
        raise UserError("--onnx", f"needs {' and '.join(missing)}", instead)


def write_onnx(model: Trained, file: Path) -> None:
    """Write normalised images (batch, c, h, w) -> logits (batch, classes), for any batch size.

    Raises UserError if torch cannot.
    """
    size = sum(tensor.nbytes for tensor in model.net.state_dict().values())
    try:
        torch.onnx.export(
            model.net,
            (sample(model),),
            str(file),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
            external_data=size > 2**30,  # a file may have 2 GiB
        )
    except Exception as error:  # whatever the exporter raises
        what = f"torch cannot write {model.recipe.model.name} ({brief(error)})"
        raise UserError("--onnx", what, "export without it") from None


def label_names(recipe: Recipe, run: Path | None = None) -> list[str] | None:
    """Return the names of a recipe's classes; None if they are numbers or not known.

    ImageNet's synsets, or those that the run was trained on, or those of data that is still there.
    """
    data, official = recipe.data, ImageNetInfo().label_names()
    if data.name == "imagenet" and data.classes == len(official):
        return official
    known = read_fingerprint(run) if run else None
    try:
        names = known["classes"] if known else synsets(load_validation(data))
    except UserError:
        return None
    numbers = [str(label) for label in range(len(names))]
    return names if names != numbers else None
