"""Problems of a recipe's values with each other, one function per section."""

import re
from collections.abc import Iterator
from typing import Any

from deit_tract.recipe.datasets import DATASETS, names_for
from deit_tract.recipe.settings.base import Section, notes
from deit_tract.recipe.settings.recipe import Augment, Data, Loss, Model, Optim, Recipe
from deit_tract.recipe.source import KeyPath

Problem = tuple[KeyPath, str, str]  # key, what is wrong, what instead

MOST_ARGUMENT = 2**16  # of model.args: a depth or a width beyond it takes minutes to build
MOST_PIXELS = 8192  # of an image's shorter side
# Arguments of timm.create_model that read files of weights or fetch them
LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_PART = r"(m\d{1,3}|n\d{1,2}|p\d(\.\d{1,6})?|mstd\d{1,3}(\.\d{1,6})?|mmax\d{1,3}|inc[01])"
RAND_AUGMENT = rf"rand(-{_PART}){{0,6}}"
# What data/resident.py can do of `augment`
RESIDENT = (
    *("repeats", "crop_padding", "crop_fill", "crop_ratio", "interpolation"),
    *("flip", "rotate", "random_erase"),
)


def check_recipe(recipe: Recipe) -> Iterator[Problem]:
    """Every problem of the recipe."""
    yield from _batch(recipe)
    yield from _durations(recipe)
    yield from _schedule(recipe)
    yield from _model(recipe.model)
    yield from _checkpointing(recipe)
    yield from _optim(recipe.optim)
    yield from _data(recipe)
    yield from _evaluate(recipe)
    yield from _augment(recipe.augment, recipe.data)
    yield from _of_another_task(recipe)
    if recipe.task == "detect":
        yield from _detect(recipe)
    else:
        yield from _classify(recipe.loss, recipe.data)


def _batch(recipe: Recipe) -> Iterator[Problem]:
    batch = recipe.batch
    if batch.size % batch.lanes:
        below = batch.size - batch.size % batch.lanes
        near = f"{below} or {below + batch.lanes}" if below else f"{batch.lanes}"
        what = f"{batch.size} images do not divide into {batch.lanes} lanes"
        yield ("batch", "size"), what, f"try {near}"
    if batch.exact and recipe.model.tract_gram == "batch":
        what = "the batch's Gram matrix is summed in another order"
        yield ("batch", "exact"), what, "set model.tract_gram to lane"
    if batch.exact and batch.lanes_per_forward not in ("auto", 1):
        what = "lanes that share a forward have one gradient"
        yield ("batch", "exact"), what, "set batch.lanes_per_forward to auto"


def _durations(recipe: Recipe) -> Iterator[Problem]:
    """Durations are given in epochs or in steps; only the run's length is required."""
    if recipe.schedule.epochs is None and recipe.schedule.steps is None:
        what = "the length of the run is missing"
        yield ("schedule",), what, "set schedule.epochs or schedule.steps"
    durations = (
        ("schedule", ""),
        ("schedule", "warmup_"),
        ("evaluate", "every_"),
        ("save", "every_"),
    )
    for section, stem in durations:
        epochs, steps = f"{stem}epochs", f"{stem}steps"
        values = getattr(recipe, section)
        if getattr(values, epochs) is not None and getattr(values, steps) is not None:
            yield (section, steps), f"'{epochs}' is set too", f"give one of {epochs}, {steps}"


def _schedule(recipe: Recipe) -> Iterator[Problem]:
    schedule = recipe.schedule
    for unit in ("epochs", "steps"):
        warmup = getattr(schedule, f"warmup_{unit}")
        length = getattr(schedule, unit)
        if warmup is not None and length is not None and warmup > length:
            what = f"warm-up of {warmup} in a run of {length} {unit}"
            yield ("schedule", f"warmup_{unit}"), what, "shorten it"
    for key in ("warmup_lr", "min_lr"):
        lr = getattr(schedule, key)
        if lr > recipe.optim.lr:
            yield ("schedule", key), f"{lr} is above optim.lr {recipe.optim.lr}", "lower it"
    if schedule.warmup_prefix and schedule.name in ("constant", "multistep"):
        what = f"{schedule.name} does not fall from the warm-up on"
        yield ("schedule", "warmup_prefix"), what, "set it to false"
    if (schedule.name == "multistep") != bool(schedule.milestones):
        what = "multistep and milestones need each other"
        yield ("schedule", "milestones"), what, "set both, or neither"


def _model(model: Model) -> Iterator[Problem]:
    if model.train != "all" and not model.pretrained:
        what = f"'{model.train}' would freeze a new model's layers"
        yield ("model", "train"), what, "set model.pretrained=true, for finetune.py --checkpoint"
    if model.train != "all" and model.tract is not None:
        what = f"TrAct trains the first layer, which model.train={model.train} freezes"
        yield ("model", "tract"), what, "set model.tract=null, or model.train=all"
    if model.drop_path_mode == "subset" and model.drop_path_rule == "rising":
        what = "a lane's share of samples is one for all blocks"
        yield ("model", "drop_path_mode"), what, "set it to mask"
    for name, value in model.args.items():
        key = ("model", "args", name)
        if not name.isidentifier():
            yield key, f"'{name}' is not the name of an argument", ""
        if name in LOADING:
            what = f"a recipe loads no weights, '{name}' does"
            yield key, what, "use finetune.py --checkpoint"
        if not all(abs(number) <= MOST_ARGUMENT for number in _numbers(value)):
            what = f"'model.args.{name}' must be at most {MOST_ARGUMENT:,}"
            yield key, what, "give a smaller number"


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value of model.args."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def _checkpointing(recipe: Recipe) -> Iterator[Problem]:
    if recipe.model.checkpointing and recipe.precision.compile:
        what = "torch.compile decides itself what is computed again"
        yield ("model", "checkpointing"), what, "set one of it and precision.compile to false"


def _optim(optim: Optim) -> Iterator[Problem]:
    if optim.nesterov and not optim.momentum:
        yield ("optim", "nesterov"), "Nesterov's momentum is 0", "raise optim.momentum"


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    for key in ("mean", "std"):
        values = getattr(data, key)
        if values is not None and len(values) != data.channels:
            what = f"{len(values)} values for {data.channels} channels"
            yield ("data", key), what, "give one value per channel"
        if values is None and recipe.task == "detect":
            yield ("data", key), "null, but a detector's weights tell none", "give its values"
    if data.classes is None and data.name != "folder":
        what = f"the classes of '{data.name}' are not counted"
        yield ("data", "classes"), what, "give their number"
    if data.split is not None and data.name != "folder":
        what = f"'{data.name}' has validation images of its own"
        yield ("data", "split"), what, "set it to null"
    if not data.resident:
        return
    if data.pipeline == "fast":
        what = "resident images are not decoded, cropped or resized"
        yield ("data", "pipeline"), what, "set it to exact"
    for key in _not_resident(recipe):
        what = f"images on the device cannot have {key}"
        yield ("data", "resident"), what, "set data.resident=false, or drop it"


def _not_resident(recipe: Recipe) -> Iterator[str]:
    """What the recipe asks of its images and data/resident.py cannot do."""
    for name in Augment.model_fields:
        if name not in RESIDENT and getattr(recipe.augment, name):
            yield f"augment.{name}"
    if recipe.data.skip_unreadable:
        yield "data.skip_unreadable"
    if recipe.evaluate.crop < 1:
        yield "evaluate.crop below 1"


def _evaluate(recipe: Recipe) -> Iterator[Problem]:
    resized = int(recipe.data.image_size / recipe.evaluate.crop)
    if resized > MOST_PIXELS:
        what = f"images would be resized to {resized:,} px; at most {MOST_PIXELS:,}"
        yield ("evaluate", "crop"), what, "raise it"


def _augment(augment: Augment, data: Data) -> Iterator[Problem]:
    policy = augment.rand_augment
    if policy and not re.fullmatch(RAND_AUGMENT, policy):
        what = f"'{policy}' is not a RandAugment policy"
        yield ("augment", "rand_augment"), what, "write it as rand-m9-mstd0.5-inc1"
    if policy and data.channels != 3:
        yield ("augment", "rand_augment"), "RandAugment needs RGB images", "set it to null"


def _of_another_task(recipe: Recipe) -> Iterator[Problem]:
    """Keys that the recipe sets and its task does not read."""
    for path, note in notes(Recipe):
        if note.task in ("all", recipe.task):
            continue
        section: Section = recipe
        for name in path[:-1]:
            section = getattr(section, name)
        if getattr(section, path[-1]) != type(section).model_fields[path[-1]].default:
            yield path, f"'{'.'.join(path)}' has no effect for task {recipe.task}", "remove it"


def _classify(loss: Loss | None, data: Data) -> Iterator[Problem]:
    if loss is None:
        yield ("loss",), "'loss' is missing", "give loss.name"
    elif loss.name == "bce" and loss.smoothing:
        what = "with bce every smoothed class would count as positive"
        yield ("loss", "smoothing"), what, "set it to 0"
    if loss is not None:
        yield from _class_weights(loss, data)
    if "classify" not in DATASETS[data.name].tasks:
        what = f"'{data.name}' has boxes instead of one class per image"
        yield ("data", "name"), what, "set task=detect"


def _class_weights(loss: Loss, data: Data) -> Iterator[Problem]:
    key, weights = ("loss", "class_weights"), loss.class_weights
    if weights is not None and loss.name != "ce":
        yield key, f"{loss.name} has none", "set it to null, or loss.name=ce"
    if isinstance(weights, list) and data.classes not in (None, len(weights)):
        yield key, f"{len(weights)} weights for {data.classes} classes", "give one per class"


def _detect(recipe: Recipe) -> Iterator[Problem]:
    model, data, detect = recipe.model, recipe.data, recipe.detect
    if model.name != "fasterrcnn_vgg16":
        yield ("model", "name"), f"no detector '{model.name}'", "set it to fasterrcnn_vgg16"
    if "detect" not in DATASETS[data.name].tasks:
        instead = f"use one of {', '.join(names_for('detect'))}"
        yield ("data", "name"), f"'{data.name}' has no boxes", instead
    if data.channels != 3:
        yield ("data", "channels"), "the detector takes RGB images", "set it to 3"
    frozen = model.unfreeze_from
    if frozen and not model.pretrained:
        what = f"the first {frozen} convolutions would keep their random weights"
        yield ("model", "unfreeze_from"), what, "set it to 0, or model.pretrained=true"
    if frozen and model.tract is not None:
        what = f"backbone.0 is frozen by model.unfreeze_from {frozen}: TrAct would change nothing"
        yield ("model", "tract"), what, "set one of them to null or 0"
    if detect is None:
        yield ("detect",), "'detect' is missing", "give detect.class_names"
        return
    names = [name.strip().lower() for name in detect.class_names]
    if len(set(names)) < len(names):
        what = "duplicate class name"
        yield ("detect", "class_names"), what, "names are compared without case"
    if len(names) != data.classes:
        what = f"{data.classes}, but detect.class_names has {len(names)}"
        yield ("data", "classes"), what, f"set it to {len(names)}"
    if detect.max_size < data.image_size:
        what = f"{detect.max_size} is below data.image_size {data.image_size}"
        yield ("detect", "max_size"), what, "raise it"
    negative, positive = detect.rpn_negative_iou, detect.rpn_positive_iou
    if negative > positive:
        what = f"{negative} is above detect.rpn_positive_iou {positive}"
        yield ("detect", "rpn_negative_iou"), what, "lower it"
