"""What `--list` prints: the families and single recipes, or those that a word names."""

from deit_tract.common.errors import UserError
from deit_tract.common.text import nearest, plural, short
from deit_tract.recipe import catalogue
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe

WIDTH = 160


def overview() -> str:
    """Return a line per family file and one per single recipe."""
    entries = catalogue.names().values()
    families = {entry.path: entry.family for entry in entries if entry.family}
    lines = []
    for family in families.values():
        pattern = family.pattern.value
        named = {axis: options for axis, options in family.axes.items() if f"{{{axis}}}" in pattern}
        axes = [f"{axis}: {_options(list(options))}" for axis, options in named.items()]
        lines.append((pattern, plural(len(family.members), "recipe"), "; ".join(axes)))
    single = [load_recipe(entry.name) for entry in entries if not entry.family]
    last = "--list WORD shows the recipes of a name, a data set, a model, or tract"
    return "\n".join([*_columns(lines, flexible=2), "", *_recipe_lines(single), "", last])


def matching(word: str) -> str:
    """Return a line per recipe of a data set, a model, a part of a name, or with TrAct.

    Raises UserError if there is none.
    """
    recipes = [load_recipe(name) for name in catalogue.names()]
    if word == "tract":
        found = [recipe for recipe in recipes if recipe.model.tract is not None]
    else:
        found = [recipe for recipe in recipes if recipe.data.name == word]
        found = found or [one for one in recipes if word in one.name or word in _model(one)]
    if not found:
        known = {text for one in recipes for text in (one.name, one.data.name, _model(one))}
        instead = nearest(word, known) or "--list shows all"
        raise UserError("--list", f"no recipe, data set or model '{short(word)}'", instead)
    return "\n".join(_recipe_lines(found))


def _model(recipe: Recipe) -> str:
    """Return the model's name; empty if the weights decide it."""
    return recipe.model.name or ""


def _recipe_lines(recipes: list[Recipe]) -> list[str]:
    """Return name, what it is, expected top-1 (or mAP) and cost; blank if unknown."""
    rows = []
    for recipe in recipes:
        expected = "" if recipe.expected is None else f"{recipe.expected:g} %"
        cost = (recipe.expect.cost or "").partition(" (")[0]  # without its source
        rows.append((recipe.name, recipe.about, expected, cost))
    return _columns(rows, flexible=1)


def _options(names: list[str]) -> str:
    shown = [name or "-" for name in names]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]} ... {shown[-1]} ({len(shown)})"


def _columns(rows: list[tuple[str, ...]], flexible: int) -> list[str]:
    """Align cells; the text of the flexible column is cut so that each line fits WIDTH."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    most = WIDTH - 2 * (len(widths) - 1) - sum(widths) + widths[flexible]
    widths[flexible] = min(widths[flexible], most)
    lines = []
    for row in rows:
        cells = list(row)
        if len(cells[flexible]) > most:
            cells[flexible] = f"{cells[flexible][: most - 3]}..."
        lines.append("  ".join(map(str.ljust, cells, widths)).rstrip())
    return lines
