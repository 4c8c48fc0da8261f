"""A trained model as timm's hub has them: model.safetensors with config.json, and what else belongs to it.

A folder is written beside its place and renamed; before that timm has loaded it, and given the same logits and pixels.
"""

import json
import math
import os
import re
import shutil
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
from deit_tract.common.files import disk_errors, write_atomic
from deit_tract.common.seeds import derive
from deit_tract.data.sets.imagenet import class_names
from deit_tract.data.sets.load import load_validation
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.results.trained import Trained

FILES = {
    "model.safetensors",
    "config.json",
    "recipe.yaml",
    "README.md",
    "model.onnx",
    "model.onnx.data",
}


def write(
    model: Trained, run: Path, folder: Path, names: list[str] | None, card: str, onnx: bool = False
) -> None:
    """Make `folder`, or replace the export that is there. names: of the classes; card: README.md.

    Raises UserError where something else lies there, or what timm makes of the folder is not the model.
    """
    check_place(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(folder, "free some space or choose another folder"):
            part.mkdir(parents=True)
            state = {key: value.contiguous() for key, value in model.net.state_dict().items()}
            _write(part / "model.safetensors", serialize(state, {"format": "pt"}))
            write_atomic(part / "config.json", json.dumps(config(model, names), indent=2) + "\n")
            write_atomic(part / "recipe.yaml", shared_recipe(run / "recipe.yaml"))
            write_atomic(part / "README.md", card)
            check_loads(model, part)
            if onnx:
                write_onnx(model, part / "model.onnx")
            _replace(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Raises UserError where a folder holds anything but an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is a file", "name a folder")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - FILES or (
        there and not {"model.safetensors", "config.json", "recipe.yaml"} <= there
    ):
        what = f"holds something else than an exported model ({', '.join(sorted(there - FILES or there)[:3])})"
        raise UserError(folder, what, "choose a folder that is empty or not there")


def _replace(folder: Path, part: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def config(model: Trained, names: list[str] | None) -> dict[str, Any]:
    """config.json, with no key that timm 1.0.26 does not know (it refuses a pretrained_cfg with others).

    What is said in model_args goes to timm.create_model; rates of dropping are training's and stay out.
    """
    net, recipe, view = model.net, model.recipe, model.view
    known, size = net.pretrained_cfg, view["image_size"]
    arguments = {
        key: value
        for key, value in recipe.model.args.items()
        if not ("drop" in key and "rate" in key)
    }
    found: dict[str, Any] = {
        "architecture": recipe.model.name.partition(".")[0],
        "num_classes": view["classes"],
        "num_features": net.num_features,
    }
    if isinstance(getattr(net, "global_pool", None), str):
        found["global_pool"] = net.global_pool
    if names is not None:
        found["label_names"], known_names = names, set(ImageNetInfo().label_names())
        if set(names) <= known_names:
            found["label_descriptions"] = {
                name: ImageNetInfo().label_name_to_description(name) for name in names
            }
    if arguments:
        found["model_args"] = arguments
    found["pretrained_cfg"] = {
        "num_classes": view["classes"],
        "input_size": [view["channels"], size, size],
        "fixed_input_size": bool(known.get("fixed_input_size")),
        "interpolation": recipe.augment.interpolation,
        "crop_pct": crop_pct(size, recipe.evaluate.crop),
        "crop_mode": "center",
        "mean": view["mean"],
        "std": view["std"],
        "pool_size": None,
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
    }
    return found


def crop_pct(size: int, crop: float) -> float:
    """The fraction for timm, which resizes to floor(size / fraction), where the evaluation has round(size / crop)."""
    side = round(size / crop)
    if math.floor(size / crop) == side:
        return crop
    fraction = size / side
    while math.floor(size / fraction) < side:  # by the last bit
        fraction = math.nextafter(fraction, 0)
    return fraction


def shared_recipe(file: Path) -> str:
    """The run's resolved recipe, without the place of the data on the machine that it ran on."""
    return re.sub(
        r"^  dir: .*$", "  dir: null", file.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE
    )


def sample(model: Trained, count: int = 2) -> Tensor:
    """Images (count, c, h, w) of noise, as the model takes them."""
    view, generator = model.view, torch.Generator().manual_seed(derive(0, "export"))
    return torch.randn(count, view["channels"], *(view["image_size"],) * 2, generator=generator)


@torch.inference_mode()
def check_loads(model: Trained, folder: Path) -> None:
    """Raises UserError unless timm loads the folder to equal weights, logits and pixels."""
    try:
        other = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    except Exception as error:  # whatever timm raises
        raise _inexact(
            model.recipe, f"timm cannot load it ({' '.join(str(error).split())[:200]})"
        ) from None
    state, theirs = model.net.state_dict(), other.state_dict()
    if list(state) != list(theirs) or not all(
        torch.equal(state[key], theirs[key]) for key in state
    ):
        raise _inexact(model.recipe, "timm loads other weights from it")
    images = sample(model)
    if not torch.equal(model.net(images), other(images)):
        raise _inexact(model.recipe, "timm computes other logits from its weights")
    transform = create_transform(**resolve_model_data_config(other), is_training=False)
    if not all(torch.equal(model.transform(image), transform(image)) for image in _pictures(model)):
        raise _inexact(model.recipe, "timm prepares images differently")


def _inexact(recipe: Recipe, what: str) -> UserError:
    return UserError(
        recipe.model.name, f"cannot be exported exactly: {what}", "nothing was written"
    )


def _pictures(model: Trained) -> list[Image.Image]:
    """Noise, wider and higher than the model's images."""
    size, mode = model.view["image_size"], "RGB" if model.view["channels"] == 3 else "L"
    noise = np.random.default_rng(0).integers(
        256, size=(2 * size + 3, 3 * size + 1, 3), dtype=np.uint8
    )
    return [
        Image.fromarray(pixels).convert(mode) for pixels in (noise, noise.transpose(1, 0, 2).copy())
    ]


def check_onnx() -> None:
    """Raises UserError where torch.onnx lacks what it needs."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(
            "--onnx", f"needs {' and '.join(missing)}", f"pip install {' '.join(missing)}"
        )


def write_onnx(model: Trained, file: Path) -> None:
    """Normalised images (batch, c, h, w) -> logits (batch, classes), any batch. Raises UserError where torch cannot."""
    large = (
        sum(tensor.nbytes for tensor in model.net.state_dict().values()) > 2**30
    )  # a file may have 2 GiB
    batch = {0: torch.export.Dim("batch")}
    try:
        torch.onnx.export(
            model.net, (sample(model),), str(file), input_names=["images"], output_names=["logits"],
            dynamic_shapes=(batch,), dynamo=True, verbose=False, external_data=large,
        )  # fmt: skip
    except Exception as error:  # whatever the exporter raises
        what = (
            f"torch cannot write {model.recipe.model.name} ({' '.join(str(error).split())[:200]})"
        )
        raise UserError("--onnx", what, "export without it") from None


def label_names(recipe: Recipe) -> list[str] | None:
    """The names of the classes: ImageNet's synsets, else those of the run's data where it is still at hand."""
    data, official = recipe.data, ImageNetInfo().label_names()
    if data.name == "imagenet" and data.classes == len(official):
        return official
    try:
        images = load_validation(data)
    except UserError:
        return None
    return (
        class_names(images, data.classes)
        if getattr(images, "classes", None) is not None
        else None
    )
