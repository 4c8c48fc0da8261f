"""From a recipe's name to the typed Recipe: merged over its bases, checked, with origins."""

import json
from collections.abc import Iterable

from pydantic import ValidationError

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import nearest, plural, short
from deit_tract.recipe import catalogue, published, source
from deit_tract.recipe.aliases import key_of
from deit_tract.recipe.checks import check_recipe
from deit_tract.recipe.settings.base import fields
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.recipe.source import KeyPath, Value, Values

SHOWN = 20  # mistakes that are explained one by one


def load_recipe(name: str, overrides: Iterable[str] = (), data_dir: str | None = None) -> Recipe:
    """Return the recipe NAME or FILE with overrides `section.key=value`; data_dir sets data.dir.

    Raises UserErrors with every mistake found, each with file:line (or the override) and a hint.
    """
    entry = catalogue.find(name)
    errors: list[UserError] = []
    values = catalogue.read_chain(entry, errors)
    for text in overrides:
        values = source.merge(values, source.parse_override(text, errors))
    if data_dir is not None:
        values[("data", "dir")] = Value(str(data_dir), "--data-dir")
    return _validate(_add_published(values, errors), entry, errors)


def _add_published(values: Values, errors: list[UserError]) -> Values:
    """Fill in the number and source that expect.published names, unless a number is given.

    A number that was reached after a fine-tuning is not what the pre-training is to reach.
    """
    key = values.get(("expect", "published"))
    metrics = [("expect", "top1"), ("expect", "map07")]
    if key is None or "/" not in str(key.value) or any(path in values for path in metrics):
        return values
    try:
        result = published.find_result(str(key.value), key.origin)
    except UserError as error:
        errors.append(error)
        return values
    if not result:
        return values
    origin = f"{source.display(published.FILE)} ({key.value})"
    text = f"{result['source']}: {result['what']}"
    added = {path: Value(result[path[1]], origin) for path in metrics if path[1] in result}
    starts = values.get(("model", "pretrained"))
    if result.get("finetuned") and not (starts and starts.value):
        text = f"{text}: {result['top1']:g} %"
        added = {}
    added["expect", "source"] = Value(text, origin)
    return source.merge(added, values)


def _validate(values: Values, entry: catalogue.Entry, errors: list[UserError]) -> Recipe:
    where = source.display(entry.path)
    origins = {key: value.origin for key, value in values.items()}
    try:
        recipe = Recipe.model_validate(_nest(values))
    except ValidationError as error:
        found = _by_value(error.errors())
        errors += [_explain_error(one, origins, where) for one in found[:SHOWN]]
        raise UserErrors(errors + _others(found, where)) from None
    problems = list(check_recipe(recipe))
    for key, what, instead in problems[:SHOWN]:
        errors.append(UserError(_place(key, origins, where), what, instead))
    errors += _others(problems, where)
    if errors:
        raise UserErrors(errors)
    recipe._name = entry.name
    recipe._origins = origins
    return recipe


def _others(found: list, where: str) -> list[UserError]:
    """What is left of the mistakes after the first, each of which took a search to explain."""
    others = len(found) - SHOWN
    if others <= 0:
        return []
    return [UserError(where, f"{plural(others, 'more mistake')}", "correct those above first")]


def _nest(values: Values) -> dict:
    tree: dict = {}
    for path, value in values.items():
        section = tree
        for key in path[:-1]:
            section = section.setdefault(key, {})
        section[path[-1]] = value.value
    return tree


def _by_value(errors: list[dict]) -> list[dict]:
    """Join the errors of a value that may be of several types.

    pydantic has one for each of the types, whose name it puts behind the key.
    """
    keys = {key for key, _ in fields(Recipe)}
    groups: dict[tuple, list[dict]] = {}
    for error in errors:
        place = error["loc"]
        names = [at for at, name in enumerate(place) if isinstance(name, str)]
        at = next((at for at in names if place[:at] in keys), len(place))
        groups.setdefault(place[:at], []).append(error | {"loc": place[:at] + place[at + 1 :]})
    return [error for key, group in groups.items() for error in _joined(key, group)]


def _joined(key: tuple, errors: list[dict]) -> list[dict]:
    """Say all that a key may be; of a list only which items are wrong."""
    items = [error for error in errors if error["loc"] != key]
    if items:
        return items
    others = [error["msg"].removeprefix("Input should be ") for error in errors[1:]]
    return [errors[0] | {"msg": " or ".join([errors[0]["msg"], *others])}]


def _explain_error(error: dict, origins: dict[KeyPath, str], where: str) -> UserError:
    """Turn one pydantic error into a line: where, what, what instead."""
    path = tuple(str(key) for key in error["loc"])
    key = ".".join(path)
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
    """Return the origin of a key, else the file of the first key below or beside it."""
    for length in range(len(path), 0, -1):
        for other, origin in origins.items():
            if other[:length] == path[:length]:
                exact = length == len(path) or origin.startswith("--set")
                return origin if exact else origin.rpartition(":")[0]
    return where


def _suggest(path: KeyPath) -> str:
    """Name the nearest key of the same section, else the same key in another section.

    Before both comes a name that timm or DeiT has for a key of this section.
    """
    *section, key = path
    keys = [other for other, _ in fields(Recipe)]
    depth = len(section)
    siblings = {k[depth] for k in keys if len(k) > depth and k[:depth] == tuple(section)}
    alias = key_of(key)
    if alias and (not section or alias.startswith(f"{'.'.join(section)}.")):
        return f"did you mean '{alias}'?"
    elsewhere = next((".".join(other) for other in keys if other[-1] == key), alias)
    return nearest(key, siblings) or (f"did you mean '{elsewhere}'?" if elsewhere else "")
