"""What is asked for: settings, loading, checks, provenance, what is published. Knows no torch."""

from deit_tract.recipe.catalogue import names
from deit_tract.recipe.describe import differences, explain, schema
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe

load = load_recipe

__all__ = ["Recipe", "differences", "explain", "load", "load_recipe", "names", "schema"]
