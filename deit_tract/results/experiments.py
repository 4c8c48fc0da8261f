"""What runs differ in, and whether what their recipes expect still holds for them.

A run's recipe.yaml has the origin of each value beside it. What --set has changed, or a recipe
below the one that names the expected result, is another experiment, if it decides the result.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from deit_tract.common.errors import UserError
from deit_tract.common.text import short
from deit_tract.recipe import catalogue
from deit_tract.recipe.describe import FREE_KEYS, leaves
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.recipe.source import ROOT, display

SHOWN = {"about", "seed", "model.tract"}  # elsewhere in a table of runs
NAMED = ("expect.top1", "expect.map07", "expect.published")  # what names an expected result


def differing_values(recipes: Sequence[Recipe]) -> dict[str, list[str]]:
    """Return each key that is not the same in all recipes, with its value in each of them.

    In the order of the settings. What is expected of a recipe is not part of it.
    """
    values = [{".".join(key): value for key, (value, _) in leaves(one).items()} for one in recipes]
    found = {}
    for key in dict.fromkeys(key for one in values for key in one):
        texts = [_text(one[key]) if key in one else "-" for one in values]
        if len(set(texts)) > 1 and key not in SHOWN and not key.startswith("expect."):
            found[key] = [short(text, 30) for text in texts]
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def changed_keys(file: Path, recipe: Recipe) -> list[str]:
    """Return the keys of a run that make it another experiment than its expected result's.

    file: the run's recipe.yaml, as which `recipe` was loaded.
    """
    origins = dict(_origins(file, recipe))
    named = [origins[key] for key in NAMED if origins.get(key, "default") != "default"]
    if not named or any(origin.startswith("--set") for origin in named):
        return []
    expecting = {_file_of(origin) for origin in named}
    return [
        key
        for key, origin in origins.items()
        if not key.startswith("expect.")
        and key != "seed"
        and tuple(key.split(".")) not in FREE_KEYS
        and (origin.startswith("--set") or expecting <= _bases(_file_of(origin)))
    ]


def _origins(file: Path, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Read where the run had each value from: the comments that `explain` has written."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for key, (_, origin) in leaves(recipe).items():
        number = origin.rpartition(":")[2]
        if number.isdigit() and int(number) <= len(lines):
            yield ".".join(key), lines[int(number) - 1].rpartition("  # ")[2]


def _file_of(origin: str) -> str:
    """Return `recipes/a.yaml` of `recipes/a.yaml:12 (run sgd)`."""
    return re.sub(r":\d+( \(.*\))?$", "", origin)


@cache
def _bases(name: str) -> frozenset[str]:
    """Return the files that a recipe's file is based on, as far as they exist."""
    found: set[str] = set()
    while name not in found:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
            base = re.search(r"^base: *([\w./-]+)", text, re.MULTILINE)
            if base is None:
                break
            beside = (ROOT / name).parent / f"{base[1]}.yaml"
            name = display(beside if beside.is_file() else catalogue.find(base[1]).path)
        except (OSError, UnicodeDecodeError, UserError):
            break
        found.add(name)
    return frozenset(found)
