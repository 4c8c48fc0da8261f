"""Shared by the tests of recipes."""

from deit_tract.recipe import source

NAMES = list(source.names())
