"""Whether a recipe's first step can be taken, tried before the data is read.

A made image goes through the transforms, shapes go through the model, and the optimizer is built
over them. A detector computes one made photo with few channels. Nothing needs data, a GPU or memory
for the model's numbers.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.seeds import seed_generators
from deit_tract.common.text import GIB, brief, format_bytes
from deit_tract.data.loader import Views, stacked
from deit_tract.data.sets.boxes import Objects, Photo
from deit_tract.data.sets.images import mode_of
from deit_tract.data.stream import View
from deit_tract.data.transforms import augment, fast
from deit_tract.data.transforms.detection import ToSample
from deit_tract.models.build import build_model
from deit_tract.models.detector import build_detector
from deit_tract.optim.build import build_optimizer
from deit_tract.plan.cost import Cost, estimate_memory, measure
from deit_tract.plan.gpus import GPUS
from deit_tract.plan.lanes import check_shared_forward
from deit_tract.recipe.launch import zero_stage
from deit_tract.recipe.settings.base import Section
from deit_tract.recipe.settings.recipe import Recipe

LAYERS = 10_000  # more than any model has; building them takes seconds
DRAWS = 4  # views of the made image
TOLERANCE = 1.25  # of the estimate of memory
PHOTO = 1024  # px: larger images take seconds each
PROPOSALS = 2000  # at most: suppressing more takes seconds
PROPOSALS_KEYS = ("rpn_pre_nms_train", "rpn_pre_nms_test")


def check_start(recipe: Recipe) -> None:
    """Raise UserErrors with what would stop the first step of a run on this machine."""
    errors: list[UserError] = []
    cost = probe(recipe, errors)
    if cost is not None:
        most = _main_memory()
        if torch.cuda.is_available():
            most = torch.cuda.get_device_properties(0).total_memory
        attempt(errors, check_memory, recipe, cost, most, "this machine")
    if errors:
        raise UserErrors(errors)


def probe(recipe: Recipe, errors: list[UserError]) -> Cost | None:
    """What the model costs; mistakes that would stop the first step are added to `errors`.

    `precision.autocast` must be resolved.
    """
    net = _build(recipe, errors)
    if net is None:
        return None
    cost = attempt(errors, measure, recipe, net)
    attempt(errors, check_shared_forward, recipe, net)
    attempt(errors, _check_optimizer, recipe, net)
    if recipe.task == "classify":
        attempt(errors, _check_transforms, recipe)
    elif cost is not None:
        attempt(errors, _check_detector, recipe)
    return cost


def attempt(errors: list[UserError], function: Callable, *args) -> Any:
    """The function's result; its UserError goes to the list instead."""
    try:
        return function(*args)
    except UserErrors as several:
        errors += several.args[0]
    except UserError as error:
        errors.append(error)
    return None


# ---- model and optimizer -------------------------------------------------------------------------


def _build(recipe: Recipe, errors: list[UserError]) -> nn.Module | None:
    """The model without numbers. What it cannot have is left out after its error, to find all."""
    switches = {"model.class_token_std": None, "model.drop_path": 0.0, "model.tract": None}
    while True:
        try:
            return _without_numbers(recipe)
        except UserError as error:
            errors.append(error)
            key = error.args[0]
            if key not in switches:
                return None
            changed = {key.removeprefix("model."): switches.pop(key)}
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)})


def _without_numbers(recipe: Recipe) -> nn.Module:
    """The model on shapes alone. Raises UserError if its layers would take too long to build."""
    layers = 0

    def count(*_) -> None:
        nonlocal layers
        layers += 1
        if layers > LAYERS:
            raise UserError("model.args", f"more than {LAYERS:,} layers", "give smaller numbers")

    counting = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            return build_model(recipe)
    finally:
        counting.remove()


def _check_optimizer(recipe: Recipe, net: nn.Module) -> None:
    try:
        build_optimizer(recipe.optim, net)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"{recipe.optim.name} cannot train {recipe.model.name} ({brief(error)})"
        raise UserError("optim", what) from None


def most_memory() -> int:
    """Bytes of the largest known GPU, or of this machine without GPUs if it has more."""
    return max(_main_memory(), *(gpu.memory * GIB for gpu in GPUS.values()))


def _main_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(recipe: Recipe, cost: Cost, most: int, where: str) -> None:
    """Raise UserError if a lane needs far more than `most` bytes; ZeRO's shares are not known."""
    needed = sum(estimate_memory(recipe, cost).values())
    if needed > TOLERANCE * most and zero_stage(os.environ) is None:
        lane = f"a lane of {recipe.batch.lane_size} images needs about {format_bytes(needed)}"
        instead = "raise batch.lanes, or lower data.image_size or the model's size"
        raise UserError("batch.size", f"{lane}, {where} has {format_bytes(most)}", instead)


# ---- images --------------------------------------------------------------------------------------


def _check_transforms(recipe: Recipe) -> None:
    """Try a made image in the training transform and in the evaluation's."""
    _check(recipe, "augment", _training_views)
    _check(recipe, "evaluate", _evaluated_view)


def _training_views(recipe: Recipe) -> None:
    image = _made_image(recipe)
    transform = augment.TrainTransform(recipe)
    if recipe.data.pipeline == "fast":
        image = np.array(image)
        transform = fast.FastTransform(recipe, defer=False)
    views = Views([(image, None)], transform)
    draws = DRAWS if recipe.data.image_size <= PHOTO else 1
    batch = stacked([views[View(0, seed)] for seed in range(draws)]).data
    _check_shape(transform.finish(batch.pop("image"), **batch)[0], recipe)


def _evaluated_view(recipe: Recipe) -> None:
    _check_shape(augment.eval_transform(recipe)(_made_image(recipe)), recipe)


def _made_image(recipe: Recipe) -> Image.Image:
    side = recipe.data.image_size
    return Image.new(mode_of(recipe.data), (side * 4 // 3, side))


def _check_shape(image: Tensor, recipe: Recipe) -> None:
    side = recipe.data.image_size
    if image.shape != (recipe.data.channels, side, side):
        raise ValueError(f"gives shape {tuple(image.shape)}")


def _check_detector(recipe: Recipe) -> None:
    """Compute the losses and the detections of a made photo with a narrow copy of the model."""
    _check(recipe, "detect", _one_photo)


def _one_photo(recipe: Recipe) -> None:
    side = min(recipe.data.image_size, PHOTO)
    longer = min(recipe.detect.max_size, 2 * PHOTO)
    most = {name: min(getattr(recipe.detect, name), PROPOSALS) for name in PROPOSALS_KEYS}
    parts = {
        "model": recipe.model.model_copy(update={"args": {"width": 1, "fc": 8}}),
        "data": recipe.data.model_copy(update={"image_size": side}),
        "detect": recipe.detect.model_copy(update={"max_size": longer} | most),
    }
    seed_generators(0)
    net = build_detector(recipe.model_copy(update=parts))
    photo = Image.new("RGB", (side * 4 // 3, side))
    box = torch.tensor([[0.0, 0.0, side / 2, side / 2]])
    objects = Objects(box, torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    sample = ToSample(recipe.augment.flip)(Photo(photo, objects, 0))
    net([sample["image"]], [{"boxes": sample["boxes"], "labels": sample["labels"]}])
    with torch.inference_mode():
        net.eval()([sample["image"]])


# ---- which key it is -----------------------------------------------------------------------------


def _check(recipe: Recipe, section: str, function: Callable[[Recipe], None]) -> None:
    """Raise UserError with the key of a section because of which a function fails."""
    try:
        function(recipe)
    except Exception as error:  # whatever a library makes of settings that it did not expect
        key = _culprit(recipe, section, function)
        what = f"a made image of {recipe.data.image_size} px fails"
        said = brief(error) or type(error).__name__
        raise UserError(key, f"{what} ({said})", "choose another value") from None


def _culprit(recipe: Recipe, section: str, function: Callable[[Recipe], None]) -> str:
    """The first key of a section with whose default a function does not fail, else the section."""
    settings: Section = getattr(recipe, section)
    for name, field in type(settings).model_fields.items():
        if field.is_required() or getattr(settings, name) == field.default:
            continue
        changed = settings.model_copy(update={name: field.default})
        with suppress(Exception):
            function(recipe.model_copy(update={section: changed}))
            return f"{section}.{name}"
    return section
