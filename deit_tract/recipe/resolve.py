"""The typed recipe: everything that decides what is computed, one YAML file an experiment.

`load("quickstart", ["optim.lr=1e-3"])` reads a file over its bases and the overrides, checks all of it at once and
returns a frozen Recipe that knows where each value comes from. The settings themselves are in schema.py.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import nearest, short
from deit_tract.recipe import source
from deit_tract.recipe.checks import check_recipe
from deit_tract.recipe.settings.base import fields
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.recipe.source import KeyPath, Value, Values


def load_recipe(name: str, overrides: Iterable[str] = (), data_dir: str | None = None) -> Recipe:
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
        raise UserErrors(
            errors + [_explain_error(e, values, where) for e in error.errors()]
        ) from None
    origins = {key: value.origin for key, value in values.items()}
    errors += [
        UserError(_place(key, origins, where), what, instead)
        for key, what, instead in check_recipe(recipe)
    ]
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
                return (
                    origin
                    if length == len(path) or origin.startswith("--set")
                    else origin.rpartition(":")[0]
                )
    return where


def _suggest(path: KeyPath) -> str:
    """The nearest key of the same section, else the same key in another section."""
    keys = [key for key, _ in fields(Recipe)]
    siblings = {
        k[len(path) - 1] for k in keys if k[: len(path) - 1] == path[:-1] and len(k) >= len(path)
    }
    elsewhere = [".".join(k) for k in keys if k[-1] == path[-1]]
    return nearest(path[-1], siblings) or (f"did you mean '{elsewhere[0]}'?" if elsewhere else "")
