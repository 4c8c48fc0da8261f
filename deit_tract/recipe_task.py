"""What a recipe's task needs, and the settings that would say nothing to it."""

from collections.abc import Iterator

from deit_tract.schema import Augment, Mix, Recipe

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
VOC = ("voc", "voc2007")
BOXES = (*VOC, "synthetic")  # data sets that a detector can take


def check(recipe: Recipe) -> Iterator[Problem]:
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
        if recipe.data.name in VOC:
            yield ("data", "name"), f"'{recipe.data.name}' has boxes, no class an image", "set task=detect"


def _detect(recipe: Recipe) -> Iterator[Problem]:
    model, data, detect = recipe.model, recipe.data, recipe.detect
    if model.name != "fasterrcnn_vgg16":
        yield ("model", "name"), f"no detector '{model.name}'", "set it to fasterrcnn_vgg16"
    if data.name not in BOXES:
        yield ("data", "name"), f"'{data.name}' has no boxes", f"use one of {', '.join(BOXES)}"
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
        yield ("detect", "class_names"), "a name stands there twice", "names are told apart without case"
    if len(names) != data.classes:
        yield ("data", "classes"), f"{data.classes}, but detect.class_names has {len(names)}", f"set it to {len(names)}"
    if detect.max_size < data.image_size:
        yield ("detect", "max_size"), f"{detect.max_size} is below data.image_size {data.image_size}", "raise it"
    if detect.rpn_negative_iou > detect.rpn_positive_iou:
        what = f"{detect.rpn_negative_iou} is above detect.rpn_positive_iou {detect.rpn_positive_iou}"
        yield ("detect", "rpn_negative_iou"), what, "lower it"
