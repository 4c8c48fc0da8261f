"""A recipe shown: its values with their origins, its differences from another, its JSON schema."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from deit_tract.common.text import escaped, on_one_line
from deit_tract.recipe.settings.base import Section, notes
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.recipe.source import KeyPath, Value

# What may change when a run resumes. Sharing a forward pass and compiling change a result by
# rounding, as the number of processes does. Two keys are for resuming after a fault (faults and
# data.skip_unreadable); they change a step, or the views of a broken image.
FREE_KEYS = {path for path, note in notes(Recipe) if note.free}


def leaves(recipe: Recipe) -> dict[KeyPath, Value]:
    """Every value of a recipe in the schema's order, with its origin."""

    def walk(section: Section, prefix: KeyPath):
        for name in type(section).model_fields:
            path = (*prefix, name)
            value = getattr(section, name)
            if isinstance(value, Section):
                yield from walk(value, path)
            elif isinstance(value, dict) and value:
                yield from (((*path, key), item) for key, item in value.items())
            else:
                yield path, value

    origins = recipe._origins
    return {path: Value(value, origins.get(path, "default")) for path, value in walk(recipe, ())}


def explain(recipe: Recipe, meanings: Mapping[KeyPath, str] = {}) -> str:
    """The resolved recipe as YAML that loads again, each line with where its value comes from.

    meanings: what keys mean, as comments above them.
    """
    lines: list[str] = []

    def comment(path: KeyPath) -> None:
        margin = "  " * (len(path) - 1) + "# "
        text = textwrap.wrap(meanings.get(path, ""), 100 - len(margin))
        lines.extend(f"{margin}{line}" for line in text)

    above: KeyPath = ()  # the section of the line above
    for path, (value, origin) in leaves(recipe).items():
        section = path[:-1]
        for depth, name in enumerate(section):
            if section[: depth + 1] != above[: depth + 1]:
                comment(section[: depth + 1])
                lines.append("  " * depth + f"{name}:")
        above = section
        comment(path)
        entry = "  " * len(section) + f"{path[-1]}: {_quoted(value)}"
        lines.append(f"{entry:<60}  # {on_one_line(origin)}")
    return "\n".join(lines) + "\n"


def _quoted(value: Any) -> str:
    """A value as JSON, with escapes for characters that YAML refuses or takes for a line's end."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Lines `key: old -> new` for what decides the result; FREE_KEYS may differ."""
    before = {path: value for path, (value, _) in leaves(old).items()}
    after = {path: value for path, (value, _) in leaves(new).items()}
    lines = []
    for path in sorted((before.keys() | after.keys()) - FREE_KEYS):
        was = before.get(path)
        now = after.get(path)
        if was != now:
            lines.append(f"{'.'.join(path)}: {json.dumps(was)} -> {json.dumps(now)}")
    return lines


def schema() -> dict:
    """The JSON schema of a recipe file, for editors. Nothing is required: a base may provide it."""

    def relax(node):
        if isinstance(node, dict):
            node = {key: relax(value) for key, value in node.items() if key != "required"}
        elif isinstance(node, list):
            node = [relax(item) for item in node]
        return node

    tree = relax(Recipe.model_json_schema())
    only = {"type": "object", "description": "options of other axes that this one goes with"}
    option = {"properties": {"only": only, **tree["properties"]}, "additionalProperties": False}
    names = {"type": "array", "description": "options that set nothing"}
    axis = {"anyOf": [{"additionalProperties": {"anyOf": [option, {"type": "null"}]}}, names]}
    own = {
        "base": {"type": "string", "description": "recipe to start from"},
        "family": {"type": "string", "description": "its members' names: a pattern with {axis}"},
        "options": {
            "type": "object",
            "description": "of a family: axis, option, what it sets",
            "additionalProperties": axis,
        },
    }
    tree["properties"] = own | tree["properties"]
    return tree
