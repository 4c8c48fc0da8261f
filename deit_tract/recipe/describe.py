"""A recipe told back: its values with their origins, differences, and the JSON schema."""

import json
from typing import Any

from deit_tract.common.text import escaped, on_one_line
from deit_tract.recipe.settings.recipe import Recipe, Section
from deit_tract.recipe.source import KeyPath, Value

# What may differ when a run is continued: it changes neither weights nor accuracies.
# Sharing a forward and compiling change it as a number of processes does, by rounding.
# Two are there to go on after a fault, and change a step or the views of a broken image.
FREE_KEYS = (
    *(
        "about",
        "expect",
        "data.dir",
        "data.resident",
        "data.verify",
        "data.workers",
        "evaluate.batch_size",
    ),
    *("evaluate.pictures", "data.skip_unreadable", "faults", "log", "save"),
    *("batch.lanes_per_forward", "precision.compile"),
)


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

    return {
        path: Value(value, recipe._origins.get(path, "default")) for path, value in walk(recipe, ())
    }


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
    return "".join(
        c if c.isprintable() else escaped(c) for c in json.dumps(value, ensure_ascii=False)
    )


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
