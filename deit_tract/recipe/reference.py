"""What every setting means, what it may be and its default, read from the JSON schema."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from deit_tract.common.text import table
from deit_tract.recipe.describe import FREE_KEYS
from deit_tract.recipe.settings.base import KeyPath
from deit_tract.recipe.settings.recipe import Recipe

PAGE = """# Settings

Every key of a recipe, written by `python train.py --schema --describe > docs/settings.md` from
`deit_tract/recipe/settings/`. `python train.py --recipe NAME --explain --describe` shows the same
beside a recipe's own values. A key without a default must be given. Keys marked *free* may change
when a run resumes; all others decide its result. Rules that join several keys are told by
`--explain` and `--plan`, with the key to change.
"""


class Setting(NamedTuple):
    """A key of the schema; a section that a recipe may leave out is one, too."""

    meaning: str
    values: str
    default: str  # as JSON; empty if the key must be given


def settings() -> dict[KeyPath, Setting]:
    """Return every key in the schema's order."""
    tree = Recipe.model_json_schema()
    return dict(_walk(tree, (), tree["$defs"]))


def meanings() -> dict[KeyPath, str]:
    """Return for every key what it means, with what it may be."""
    return {path: f"{one.meaning} ({one.values})" for path, one in settings().items()}


def page() -> str:
    """Return all settings as a Markdown page, a table for each section."""
    sections: dict[str, list[list[str]]] = {}
    for path, one in settings().items():
        free = any(path[:depth] in FREE_KEYS for depth in range(1, len(path) + 1))
        default = f"`{one.default}`" if one.default else ""
        row = [f"`{'.'.join(path)}`", one.meaning, one.values, default, "free" if free else ""]
        sections.setdefault(".".join(path[:-1]), []).append(row)
    text = PAGE
    for name, rows in sections.items():
        text += f"\n## {name or 'The recipe itself'}\n\n"
        text += table(["key", "what it is", "values", "default", "resuming"], rows) + "\n"
    return text.rstrip("\n")


def _walk(node: dict, path: KeyPath, sections: dict) -> Iterator[tuple[KeyPath, Setting]]:
    inner: list[tuple[KeyPath, dict]] = []
    for name, field in node["properties"].items():
        kinds = [field, *field.get("anyOf", ())]
        section = next((sections[_name(kind)] for kind in kinds if "$ref" in kind), None)
        if section is not None:
            inner.append(((*path, name), section))
        if section is None or "anyOf" in field:
            default = json.dumps(field["default"]) if "default" in field else ""
            yield (*path, name), Setting(field["description"], _values(field), default)
    for below, section in inner:
        yield from _walk(section, below, sections)


def _name(reference: dict) -> str:
    return reference["$ref"].rpartition("/")[2]


def _values(node: dict) -> str:
    """What a key may be, in words."""
    match node:
        case {"anyOf": kinds}:
            return " or ".join(map(_values, kinds))
        case {"enum": choices}:
            return ", ".join(map(str, choices))
        case {"const": value}:
            return str(value)
        case {"type": "array", "prefixItems": [first, *_]}:
            return f"two of: {_values(first)}"
        case {"type": "array", "items": item}:
            return f"list of {_values(item)}"
        case {"type": "integer" | "number" as kind}:
            return f"{kind} {_limits(node)}"
    return KINDS.get(node.get("type", ""), "keys of its own")


KINDS = {"boolean": "true, false", "null": "null", "string": "text", "object": "names and values"}


def _limits(node: dict[str, Any]) -> str:
    words = {
        "minimum": "from",
        "exclusiveMinimum": "above",
        "maximum": "to",
        "exclusiveMaximum": "below",
    }
    return " ".join(f"{word} {node[key]:,.10g}" for key, word in words.items() if key in node)
