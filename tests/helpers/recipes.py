"""Shared by the tests of recipes."""

from deit_tract.recipe.catalogue import names

NAMES = list(names())
