"""Recipes by name: the files below recipes/, the members of family files, and their bases."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, nearest, plural, short
from deit_tract.recipe.families import Family, member_values, read_family
from deit_tract.recipe.source import ROOT, Values, display, is_file, merge, read_file

RECIPES = ROOT / "recipes"
CHAIN = 20  # bases on each other; far above any recipe's


class Entry(NamedTuple):
    """Where a recipe is: its file and, if that is a family file, the family it is a member of."""

    name: str
    path: Path
    family: Family | None = None
    error: UserError | None = None  # of a broken family file, whose members are unknown


@cache
def names() -> dict[str, Entry]:
    """Return every shipped recipe by name, sorted."""
    return read_folder(RECIPES)


def read_folder(folder: Path) -> dict[str, Entry]:
    """Return the recipes below a folder by name, sorted. Raises UserError if two share a name."""
    entries: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*.yaml")):
        family, broken = None, None
        try:
            family = read_family(path)
        except UserError as error:
            broken = error
        for name in family.members if family else [path.stem]:
            if name in entries:
                where = family.pattern.origin if family else display(path)
                other = display(entries[name].path)
                raise UserError(where, f"recipe '{name}' is in {other}, too", "rename one of them")
            entries[name] = Entry(name, path, family, broken)
    return dict(sorted(entries.items()))


def find(name: str) -> Entry:
    """Return the recipe NAME below recipes/, that of FILE, or a family's member as FILE:NAME.

    Raises UserError with the nearest name, or with the members' names if FILE is a family.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return _find_in_file(name)
    if not RECIPES.is_dir():
        what = "this installation has none: the recipes are in the project's folder"
        raise UserError("recipe", what, "install it with pip install -e, or give a YAML file")
    entries = names()
    broken = [entry for entry in entries.values() if entry.error]
    if name in entries and entries[name] not in broken:
        return entries[name]
    if broken:
        raise broken[0].error
    raise UserError("recipe", f"no recipe '{short(name)}'", nearest(name, entries) or "see --list")


def _find_in_file(name: str) -> Entry:
    file, member = (name, "") if is_file(Path(name)) else name.rpartition(":")[::2]
    path = Path(file)
    there = is_file(path)
    family = read_family(path) if there else None
    if there and not family and not member:
        return Entry(path.stem, path)
    if not family:
        raise UserError(short(name, 500), "no such recipe file")
    if member in family.members:
        return Entry(member, path, family)
    prefix = "" if path.resolve().is_relative_to(RECIPES) else f"{file}:"
    members = [prefix + member for member in family.members]
    if member:
        what = f"no recipe '{short(member)}'"
        raise UserError(display(path), what, nearest(prefix + member, members))
    what = f"holds {plural(len(members), 'recipe')}"
    raise UserError(display(path), what, f"name one: {listed(members, 4)}")


def read_chain(entry: Entry, errors: list[UserError], above: tuple[Entry, ...] = ()) -> Values:
    """Read a recipe over its `base`, over that one's, and so on; mistakes are added to `errors`.

    Raises UserError if reading cannot go on: a circle, an unknown base, a file that is not YAML.
    """
    where = display(entry.path)
    chain = [(one.path.resolve(), one.name) for one in (*above, entry)]
    if chain[-1] in chain[:-1]:
        circle = " -> ".join(name for _, name in chain[chain.index(chain[-1]) :])
        raise UserError(where, f"circular base: {circle}", "remove one link")
    if len(above) > CHAIN:
        raise UserError(where, f"more than {CHAIN} levels of base", "join some of them")
    if entry.family:
        values = member_values(entry.family, entry.name)
    else:
        values = read_file(entry.path, errors)
    base = values.pop(("base",), None)
    if base is None:
        return values
    if not isinstance(base.value, str):
        raise UserError(base.origin, "'base' must be a recipe's name")
    beside = entry.path.parent / f"{base.value}.yaml"
    try:
        lower = find(str(beside)) if is_file(beside) else find(base.value)
    except UserError as error:
        raise UserError(base.origin, *error.args[1:]) from None
    return merge(read_chain(lower, errors, (*above, entry)), values)
