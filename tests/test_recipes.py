"""Every shipped recipe: loads, says what it is, and runs two steps on synthetic data."""

from collections import Counter

import pytest
from conftest import losses, short, train

from deit_tract import cli, recipe_source
from deit_tract import recipe as recipes

NAMES = list(recipe_source.names())


def test_names_are_unique():
    counts = Counter(path.stem for path in recipe_source.RECIPES.rglob("*.yaml"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_list_has_a_line_for_each():
    lines = cli.listing().splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(recipes.load(name).about in line for name, line in zip(NAMES, lines, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_on_synthetic_data(name, tmp_path):
    recipe = recipes.load(name)
    lanes = min(recipe.batch.lanes, 2)
    overrides = short(2, "data.name=synthetic", f"batch.size={2 * lanes}", f"batch.lanes={lanes}", "data.workers=0")
    if recipe.data.image_size > 64:
        overrides.append("model.args.depth=1")  # twelve would take minutes
    records = train(tmp_path, *overrides, recipe=name)
    assert len(losses(records)) == 2 and "top1" in records[-1]
