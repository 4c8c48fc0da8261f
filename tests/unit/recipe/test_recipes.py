"""Every shipped recipe: what it resolves to, is expected to reach, and what --list shows of it."""

import hashlib
import json
from pathlib import Path

import pytest

from deit_tract.common.errors import UserError
from deit_tract.recipe import catalogue, listing
from deit_tract.recipe.describe import leaves
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.recipes import NAMES

RESOLVED = Path(__file__).with_name("resolved.json")


def fingerprint(name: str) -> list:
    """A hash of every value but texts about the recipe, and the expected number."""
    recipe = load_recipe(name)
    values = {".".join(path): value for path, (value, _) in leaves(recipe).items()}
    kept = {key: values[key] for key in values if key != "about" and not key.startswith("expect.")}
    text = json.dumps(kept, sort_keys=True)
    return [hashlib.sha256(text.encode()).hexdigest()[:16], recipe.expected]


def test_every_recipe_resolves_to_the_stored_values():
    """A recipe changes on purpose only: then its line in resolved.json changes, too.

    python -m tests.unit.recipe.test_recipes writes the file again.
    """
    stored = json.loads(RESOLVED.read_text())
    assert stored.keys() == set(NAMES)
    assert [name for name in NAMES if fingerprint(name) != stored[name]] == []


def test_list_has_a_line_per_family_and_per_single_recipe():
    entries = catalogue.names()
    lines = listing.overview().splitlines()
    single = [name for name in NAMES if not entries[name].family]
    families = {e.family.pattern.value: len(e.family.members) for e in entries.values() if e.family}
    shown = {line.split()[0]: line for line in lines if line}
    assert list(shown) == [*families, *single, "--list"]
    assert all(f" {count} recipes " in shown[pattern] for pattern, count in families.items())
    assert (
        "98.8 %" in shown["quickstart"] and "None" not in str(lines) and "unknown" not in str(lines)
    )
    assert max(map(len, lines)) <= listing.WIDTH


@pytest.mark.parametrize(
    ("word", "count"),
    [("flowers102", 4), ("vit_cifar", 28), ("cifar10_cnn", 9), ("voc", 3), ("quickstart_base", 1)],
)
def test_list_of_a_word(word, count):
    lines = listing.matching(word).splitlines()
    assert len(lines) == count and max(map(len, lines)) <= listing.WIDTH


def test_list_of_tract_has_all_that_use_it():
    names = [line.split()[0] for line in listing.matching("tract").splitlines()]
    assert names == [name for name in NAMES if load_recipe(name).model.tract is not None]
    with pytest.raises(UserError, match="did you mean 'flowers102'"):
        listing.matching("flowers101")


if __name__ == "__main__":
    rows = [f"{json.dumps(name)}: {json.dumps(fingerprint(name))}" for name in NAMES]
    RESOLVED.write_text("{\n" + ",\n".join(rows) + "\n}\n")
