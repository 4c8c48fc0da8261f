"""The typed recipe: everything that decides what is computed, one YAML file an experiment.

`load("quickstart", ["optim.lr=1e-3"])` reads a file over its bases and the overrides, checks all of it at once and
returns a frozen Recipe that knows where each value comes from. The settings themselves are in schema.py.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from deit_tract import recipe_source as source
from deit_tract import recipe_task
from deit_tract.errors import UserError, UserErrors, escaped, on_one_line, short
from deit_tract.recipe_source import KeyPath, Value, Values
from deit_tract.schema import Recipe, Section

# What may differ when a run is continued: it changes neither weights nor accuracies.
# Sharing a forward and compiling change it as a number of processes does, by rounding.
# Two are there to go on after a fault, and change a step or the views of a broken image.
FREE_KEYS = (
    *("about", "expect", "data.dir", "data.resident", "data.verify", "data.workers", "evaluate.batch_size"),
    *("evaluate.pictures", "data.skip_unreadable", "faults", "log", "save"),
    *("batch.lanes_per_forward", "precision.compile"),
)

# Arguments of timm.create_model that read files of weights or fetch them
LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def load(name: str, overrides: Iterable[str] = (), data_dir: str | None = None) -> Recipe:
    """The recipe NAME or FILE with `section.key=value` overrides, and `data_dir` in place of data.dir.

    Raises UserErrors with every mistake that can be told, each with file:line (or the override) and a hint.
    """
    path = source.find(name)
    errors: list[UserError] = []
    values = source.read_chain(path, errors)
    for text in overrides:
        values = source.merge(values, source.parse_override(text, errors))
    if data_dir is not None:
        values[("data", "dir")] = Value(str(data_dir), "--data-dir")
    return _validate(values, path, errors)


def _validate(values: Values, path: Path, errors: list[UserError]) -> Recipe:
    where = source.display(path)
    try:
        recipe = Recipe.model_validate(_nest(values))
    except ValidationError as error:
        raise UserErrors(errors + [_explain_error(e, values, where) for e in error.errors()]) from None
    origins = {key: value.origin for key, value in values.items()}
    errors += [UserError(_place(key, origins, where), what, instead) for key, what, instead in _check(recipe)]
    if errors:
        raise UserErrors(errors)
    recipe._name, recipe._origins = path.stem, origins
    return recipe


def _nest(values: Values) -> dict:
    tree: dict = {}
    for path, value in values.items():
        section = tree
        for key in path[:-1]:
            section = section.setdefault(key, {})
        section[path[-1]] = value.value
    return tree


def _check(recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    """What no single field can tell: (key, what is wrong, what instead)."""
    batch, schedule, optim, data, model = recipe.batch, recipe.schedule, recipe.optim, recipe.data, recipe.model
    if batch.size % batch.lanes:
        below = batch.size - batch.size % batch.lanes
        near = f"{below} or {below + batch.lanes}" if below else f"{batch.lanes}"
        yield ("batch", "size"), f"{batch.size} images do not divide into {batch.lanes} lanes", f"try {near}"
    if batch.exact and recipe.model.tract_gram == "batch":
        yield ("batch", "exact"), "the batch's Gram matrix is summed in another order", "set model.tract_gram to lane"
    if batch.exact and batch.lanes_per_forward not in ("auto", 1):
        yield ("batch", "exact"), "lanes that share a forward have one gradient", "set batch.lanes_per_forward to auto"
    if schedule.epochs is None and schedule.steps is None:
        yield ("schedule",), "the length of the run is missing", "set schedule.epochs or schedule.steps"
    for section, stem in (("schedule", ""), ("schedule", "warmup_"), ("evaluate", "every_"), ("save", "every_")):
        part = getattr(recipe, section)
        if getattr(part, f"{stem}epochs") is not None and getattr(part, f"{stem}steps") is not None:
            yield (section, f"{stem}steps"), f"'{stem}epochs' is set too", f"give one of {stem}epochs, {stem}steps"
    for unit in ("epochs", "steps"):
        warmup, length = getattr(schedule, f"warmup_{unit}"), getattr(schedule, unit)
        if warmup is not None and length is not None and warmup > length:
            yield ("schedule", f"warmup_{unit}"), f"warm-up of {warmup} in a run of {length} {unit}", "shorten it"
    for key in ("warmup_lr", "min_lr"):
        if getattr(schedule, key) > optim.lr:
            yield ("schedule", key), f"{getattr(schedule, key)} is above optim.lr {optim.lr}", "lower it"
    if model.train != "all" and not model.pretrained:
        what = f"'{model.train}' would freeze a fresh model's layers"
        yield ("model", "train"), what, "set model.pretrained=true, for finetune.py --checkpoint"
    if model.train != "all" and model.tract is not None:
        what = f"TrAct trains the first layer, which model.train={model.train} freezes"
        yield ("model", "tract"), what, "set model.tract=null, or model.train=all"
    if recipe.loss and recipe.loss.name == "bce" and recipe.loss.smoothing:
        yield ("loss", "smoothing"), "with bce every smoothed class would count as positive", "set it to 0"
    if data.resident and data.pipeline == "fast":
        yield ("data", "pipeline"), "resident images are not decoded, cropped or resized", "set it to exact"
    for key in ("mean", "std"):
        if len(getattr(data, key)) != data.channels:
            yield ("data", key), f"{len(getattr(data, key))} values for {data.channels} channels", "give one a channel"
    yield from _check_args(recipe.model.args)
    policy = recipe.augment.rand_augment
    if policy and not re.fullmatch(r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]))*", policy):
        yield ("augment", "rand_augment"), f"'{policy}' is no RandAugment policy", "write it as rand-m9-mstd0.5-inc1"
    if policy and data.channels != 3:
        yield ("augment", "rand_augment"), "RandAugment needs RGB images", "set it to null"
    for key in _not_resident(recipe) if data.resident else ():
        yield ("data", "resident"), f"images on the device cannot have {key}", "set data.resident=false, or drop it"
    for path, pair in (
        (("augment", "crop_scale"), recipe.augment.crop_scale),
        (("augment", "crop_ratio"), recipe.augment.crop_ratio),
    ):
        if pair and not 0 < pair[0] <= pair[1]:
            yield path, f"{list(pair)} is not a range of positive numbers", "give [smallest, largest]"
    if (schedule.name == "multistep") != bool(schedule.milestones):
        yield ("schedule", "milestones"), "multistep and milestones need each other", "set both, or neither"
    yield from recipe_task.check(recipe)


def _check_args(args: dict[str, Any]) -> Iterator[tuple[KeyPath, str, str]]:
    for key, value in args.items():
        if not key.isidentifier():
            yield ("model", "args", key), f"'{key}' is not the name of an argument", ""
        if key in LOADING:
            yield ("model", "args", key), f"a recipe loads no weights, '{key}' does", "use finetune.py --checkpoint"
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            yield ("model", "args", key), f"'model.args.{key}' must be finite numbers", ""


def _not_resident(recipe: Recipe) -> list[str]:
    """What the recipe asks of its images and data/resident.py cannot do."""
    augment, own = recipe.augment, ("repeats", "crop_padding", "crop_fill", "crop_ratio", "interpolation", "flip")
    names = [name for name in type(augment).model_fields if name not in own]
    keys = [f"augment.{name}" for name in names if getattr(augment, name)]
    keys += ["data.skip_unreadable"] * (recipe.data.skip_unreadable > 0)
    return keys + ["evaluate.crop below 1"] * (recipe.evaluate.crop < 1)


def _explain_error(error: dict, values: Values, where: str) -> UserError:
    """One pydantic error as a line: where, what, what instead."""
    path = tuple(str(key) for key in error["loc"])
    key, origins = ".".join(path), {p: v.origin for p, v in values.items()}
    place = _place(path, origins, where)
    if error["type"] == "extra_forbidden":
        return UserError(place, f"no such key '{short(key)}'", _suggest(path))
    if error["type"] == "missing":
        return UserError(place, f"'{key}' is missing")
    if error["type"] in ("model_type", "dict_type"):
        return UserError(place, f"'{key}' is a section", "set one of its keys")
    what = error["msg"].replace("Input should be", f"'{key}' must be")
    return UserError(place, f"{what}, not {short(json.dumps(error['input'], default=str))}")


def _place(path: KeyPath, origins: dict[KeyPath, str], where: str) -> str:
    """The origin of a key, else of the first key below or beside it, else the file."""
    for length in range(len(path), 0, -1):
        for other, origin in origins.items():
            if other[:length] == path[:length]:
                return origin if length == len(path) or origin.startswith("--set") else origin.rpartition(":")[0]
    return where


def _suggest(path: KeyPath) -> str:
    """The nearest key of the same section, else the same key in another section."""
    keys = [key for key, _ in fields(Recipe)]
    siblings = {k[len(path) - 1] for k in keys if k[: len(path) - 1] == path[:-1] and len(k) >= len(path)}
    elsewhere = [".".join(k) for k in keys if k[-1] == path[-1]]
    return source.nearest(path[-1], siblings) or (f"did you mean '{elsewhere[0]}'?" if elsewhere else "")


def fields(section: type[Section], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every leaf key of the schema with its pydantic field."""
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))  # a section, or `section | None`
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if inner:
            yield from fields(inner[0], (*prefix, name))
        else:
            yield (*prefix, name), field


def leaves(recipe: Recipe) -> dict[KeyPath, Value]:
    """Every value of a recipe in the schema's order, with its origin."""

    def walk(section: Section, prefix: KeyPath):
        for name in type(section).model_fields:
            value, path = getattr(section, name), (*prefix, name)
            if isinstance(value, Section):
                yield from walk(value, path)
            elif isinstance(value, dict) and value:
                yield from (((*path, key), item) for key, item in value.items())
            else:
                yield path, value

    return {path: Value(value, recipe._origins.get(path, "default")) for path, value in walk(recipe, ())}


def explain(recipe: Recipe) -> str:
    """The resolved recipe as YAML that loads again, each line with where its value comes from."""
    lines, current = [], ()
    for path, (value, origin) in leaves(recipe).items():
        section = path[:-1]
        shared = next(
            (i for i, (a, b) in enumerate(zip(section, current, strict=False)) if a != b),
            min(len(section), len(current)),
        )
        lines += ["  " * depth + f"{section[depth]}:" for depth in range(shared, len(section))]
        current = section
        entry = "  " * len(section) + f"{path[-1]}: {_quoted(value)}"
        lines.append(f"{entry:<60}  # {on_one_line(origin)}")
    return "\n".join(lines) + "\n"


def _quoted(value: Any) -> str:
    """A value as JSON, with escapes for those characters that YAML does not take, or takes for a line's end."""
    return "".join(c if c.isprintable() else escaped(c) for c in json.dumps(value, ensure_ascii=False))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Lines `key: old -> new` for what decides the result; FREE_KEYS may differ."""
    a, b = leaves(old), leaves(new)
    lines = []
    for path in sorted(a.keys() | b.keys()):
        key = ".".join(path)
        if any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS):
            continue
        before, after = (side[path].value if path in side else None for side in (a, b))
        if before != after:
            lines.append(f"{key}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def schema() -> dict:
    """The JSON schema of a recipe file, for editors. Nothing is required: a base may bring it."""

    def relax(node):
        if isinstance(node, dict):
            node = {key: relax(value) for key, value in node.items() if key != "required"}
        elif isinstance(node, list):
            node = [relax(item) for item in node]
        return node

    tree = relax(Recipe.model_json_schema())
    tree["properties"] = {"base": {"type": "string", "description": "recipe to start from"}, **tree["properties"]}
    return tree
