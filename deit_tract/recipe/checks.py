"""What a recipe's task needs, and the settings that would say nothing to it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from deit_tract.recipe.datasets import DATASETS, names_for
from deit_tract.recipe.settings.recipe import Augment, Mix, Recipe
from deit_tract.recipe.source import KeyPath

# Arguments of timm.create_model that read files of weights or fetch them
LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def check_recipe(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    """What no single field can tell: (key, what is wrong, what instead)."""
    batch, schedule, optim, data, model = (
        recipe.batch,
        recipe.schedule,
        recipe.optim,
        recipe.data,
        recipe.model,
    )
    if batch.size % batch.lanes:
        below = batch.size - batch.size % batch.lanes
        near = f"{below} or {below + batch.lanes}" if below else f"{batch.lanes}"
        yield (
            ("batch", "size"),
            f"{batch.size} images do not divide into {batch.lanes} lanes",
            f"try {near}",
        )
    if batch.exact and recipe.model.tract_gram == "batch":
        yield (
            ("batch", "exact"),
            "the batch's Gram matrix is summed in another order",
            "set model.tract_gram to lane",
        )
    if batch.exact and batch.lanes_per_forward not in ("auto", 1):
        yield (
            ("batch", "exact"),
            "lanes that share a forward have one gradient",
            "set batch.lanes_per_forward to auto",
        )
    if schedule.epochs is None and schedule.steps is None:
        yield (
            ("schedule",),
            "the length of the run is missing",
            "set schedule.epochs or schedule.steps",
        )
    for section, stem in (
        ("schedule", ""),
        ("schedule", "warmup_"),
        ("evaluate", "every_"),
        ("save", "every_"),
    ):
        part = getattr(recipe, section)
        if getattr(part, f"{stem}epochs") is not None and getattr(part, f"{stem}steps") is not None:
            yield (
                (section, f"{stem}steps"),
                f"'{stem}epochs' is set too",
                f"give one of {stem}epochs, {stem}steps",
            )
    for unit in ("epochs", "steps"):
        warmup, length = getattr(schedule, f"warmup_{unit}"), getattr(schedule, unit)
        if warmup is not None and length is not None and warmup > length:
            yield (
                ("schedule", f"warmup_{unit}"),
                f"warm-up of {warmup} in a run of {length} {unit}",
                "shorten it",
            )
    for key in ("warmup_lr", "min_lr"):
        if getattr(schedule, key) > optim.lr:
            yield (
                ("schedule", key),
                f"{getattr(schedule, key)} is above optim.lr {optim.lr}",
                "lower it",
            )
    if model.train != "all" and not model.pretrained:
        what = f"'{model.train}' would freeze a fresh model's layers"
        yield ("model", "train"), what, "set model.pretrained=true, for finetune.py --checkpoint"
    if model.train != "all" and model.tract is not None:
        what = f"TrAct trains the first layer, which model.train={model.train} freezes"
        yield ("model", "tract"), what, "set model.tract=null, or model.train=all"
    if recipe.loss and recipe.loss.name == "bce" and recipe.loss.smoothing:
        yield (
            ("loss", "smoothing"),
            "with bce every smoothed class would count as positive",
            "set it to 0",
        )
    if data.resident and data.pipeline == "fast":
        yield (
            ("data", "pipeline"),
            "resident images are not decoded, cropped or resized",
            "set it to exact",
        )
    for key in ("mean", "std"):
        if len(getattr(data, key)) != data.channels:
            yield (
                ("data", key),
                f"{len(getattr(data, key))} values for {data.channels} channels",
                "give one a channel",
            )
    yield from _check_args(recipe.model.args)
    policy = recipe.augment.rand_augment
    if policy and not re.fullmatch(
        r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]))*", policy
    ):
        yield (
            ("augment", "rand_augment"),
            f"'{policy}' is no RandAugment policy",
            "write it as rand-m9-mstd0.5-inc1",
        )
    if policy and data.channels != 3:
        yield ("augment", "rand_augment"), "RandAugment needs RGB images", "set it to null"
    for key in _not_resident(recipe) if data.resident else ():
        yield (
            ("data", "resident"),
            f"images on the device cannot have {key}",
            "set data.resident=false, or drop it",
        )
    for path, pair in (
        (("augment", "crop_scale"), recipe.augment.crop_scale),
        (("augment", "crop_ratio"), recipe.augment.crop_ratio),
    ):
        if pair and not 0 < pair[0] <= pair[1]:
            yield (
                path,
                f"{list(pair)} is not a range of positive numbers",
                "give [smallest, largest]",
            )
    if (schedule.name == "multistep") != bool(schedule.milestones):
        yield (
            ("schedule", "milestones"),
            "multistep and milestones need each other",
            "set both, or neither",
        )
    yield from _check_task(recipe)


def _check_args(args: dict[str, Any]) -> Iterator[tuple[KeyPath, str, str]]:
    for key, value in args.items():
        if not key.isidentifier():
            yield ("model", "args", key), f"'{key}' is not the name of an argument", ""
        if key in LOADING:
            yield (
                ("model", "args", key),
                f"a recipe loads no weights, '{key}' does",
                "use finetune.py --checkpoint",
            )
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            yield ("model", "args", key), f"'model.args.{key}' must be finite numbers", ""


def _not_resident(recipe: Recipe) -> list[str]:
    """What the recipe asks of its images and data/resident.py cannot do."""
    augment, own = (
        recipe.augment,
        ("repeats", "crop_padding", "crop_fill", "crop_ratio", "interpolation", "flip"),
    )
    names = [name for name in type(augment).model_fields if name not in own]
    keys = [f"augment.{name}" for name in names if getattr(augment, name)]
    keys += ["data.skip_unreadable"] * (recipe.data.skip_unreadable > 0)
    return keys + ["evaluate.crop below 1"] * (recipe.evaluate.crop < 1)


Problem = tuple[tuple[str, ...], str, str]  # key, what is wrong, what instead

# Settings that only one of the tasks reads
OF_CLASSIFY = (
    *(("augment", name) for name in Augment.model_fields if name not in ("flip", "repeats")),
    *(("mix", name) for name in Mix.model_fields),
    ("loss",), ("model", "class_token_std"), ("model", "drop_path"), ("model", "new_head"), ("model", "train"),
    ("data", "resident"), ("data", "pipeline"), ("batch", "lanes_per_forward"), ("precision", "compile"),
    ("model", "drop_path_mode"), ("evaluate", "crop"), ("expect", "top1"),
)  # fmt: skip
OF_DETECT = (("detect",), ("model", "unfreeze_from"), ("evaluate", "pictures"), ("expect", "map07"))


def _check_task(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the task with the rest of the recipe."""
    for path in OF_CLASSIFY if recipe.task == "detect" else OF_DETECT:
        section = recipe if len(path) == 1 else getattr(recipe, path[0])
        if getattr(section, path[-1]) != type(section).model_fields[path[-1]].default:
            yield path, f"'{'.'.join(path)}' means nothing for task {recipe.task}", "remove it"
    if recipe.task == "detect":
        yield from _detect(recipe)
    else:
        if recipe.loss is None:
            yield ("loss",), "'loss' is missing", "give loss.name"
        if recipe.task not in DATASETS[recipe.data.name].tasks:
            yield (
                ("data", "name"),
                f"'{recipe.data.name}' has boxes, no class an image",
                "set task=detect",
            )


def _detect(recipe: Recipe) -> Iterator[Problem]:
    model, data, detect = recipe.model, recipe.data, recipe.detect
    if model.name != "fasterrcnn_vgg16":
        yield ("model", "name"), f"no detector '{model.name}'", "set it to fasterrcnn_vgg16"
    if recipe.task not in DATASETS[data.name].tasks:
        instead = f"use one of {', '.join(names_for(recipe.task))}"
        yield ("data", "name"), f"'{data.name}' has no boxes", instead
    if data.channels != 3:
        yield ("data", "channels"), "the detector takes RGB images", "set it to 3"
    if model.unfreeze_from and not model.pretrained:
        what = f"the first {model.unfreeze_from} convolutions would stay as they are drawn"
        yield ("model", "unfreeze_from"), what, "set it to 0, or model.pretrained=true"
    if model.unfreeze_from and model.tract is not None:
        what = f"backbone.0 is frozen by model.unfreeze_from {model.unfreeze_from}: TrAct would change nothing"
        yield ("model", "tract"), what, "set one of them to null or 0"
    if detect is None:
        yield ("detect",), "'detect' is missing", "give detect.class_names"
        return
    names = [name.strip().lower() for name in detect.class_names]
    if len(set(names)) < len(names):
        yield (
            ("detect", "class_names"),
            "a name stands there twice",
            "names are told apart without case",
        )
    if len(names) != data.classes:
        yield (
            ("data", "classes"),
            f"{data.classes}, but detect.class_names has {len(names)}",
            f"set it to {len(names)}",
        )
    if detect.max_size < data.image_size:
        yield (
            ("detect", "max_size"),
            f"{detect.max_size} is below data.image_size {data.image_size}",
            "raise it",
        )
    if detect.rpn_negative_iou > detect.rpn_positive_iou:
        what = (
            f"{detect.rpn_negative_iou} is above detect.rpn_positive_iou {detect.rpn_positive_iou}"
        )
        yield ("detect", "rpn_negative_iou"), what, "lower it"
