"""What is asked for: settings, loading, checks, provenance, and what is published. Knows no torch."""

from deit_tract.recipe.describe import differences, explain, schema
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.recipe.source import names

load = load_recipe

__all__ = ["Recipe", "differences", "explain", "load", "load_recipe", "names", "schema"]
