"""Sets of runs as data: which recipes, seeds and varied values, and what its table shows.

An entry of tools/sweeps.yaml, every key but `recipes` optional:

    table1:
      about: "what it is for"
      recipes: ["cifar100_*_200ep", "cifar100_*_tract"]   # shell patterns of recipes' names
      seeds: 0-4                        # a seed, a range, or a list
      vary: {model.tract: [0.05, 0.1]}  # a run for each value; several keys: for each combination
      checkpoint: {vit_s_ft224: vit_s_800ep}  # recipes that start from weights: from which
      show: "vit_s_ft224*"              # the recipes that the table has; default: all
      rows: net                         # what tells the table's rows apart, see `label`
      columns: run
      against: 200ep                    # the column that gains are over
      metrics: [top1, top5]             # default: the task's headline metric
      plot: curves                      # or columns: the final score over the columns' values

`checkpoint` names a run, a file or timm:NAME, or a recipe of the same set: its run with the same
seed and the same varied values, which then has to finish first. A list gives a run for each.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import listed, nearest, plural, short
from deit_tract.recipe import catalogue
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.settings.base import Section
from deit_tract.recipe.source import ROOT, display, read_file

FILE = ROOT / "tools" / "sweeps.yaml"
MOST_RUNS = 20_000
PLAIN = "plain"  # the option of a family that has no name of its own
NOTHING: Mapping[str, str] = {}

Label = str | list[str] | dict[str, str]


def parse_seeds(value: Any) -> Any:
    """Return the seeds of `3`, `0-4`, `0,2,5-9` or a list."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", value):
        raise ValueError(f"'{short(value)}' is not a list of seeds such as 0-4 or 0,1,2")
    found: list[int] = []
    for part in value.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if len(found) + len(span) > MOST_RUNS:
            raise ValueError(f"more than {MOST_RUNS:,} seeds")
        found += span
    return found


Seeds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1), BeforeValidator(parse_seeds)
]
Patterns = Annotated[list[str], Field(min_length=1)]


class Definition(Section):
    """An entry of sweeps.yaml, as it is written."""

    about: str = ""
    recipes: Patterns
    seeds: Seeds = [0]
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    checkpoint: dict[str, str | Patterns] = {}
    show: str = "*"
    rows: Label = "recipe"
    columns: Label = ""
    against: str | None = None
    metrics: list[str] = []
    plot: Literal["curves", "columns"] = "curves"


@dataclass(frozen=True)
class Member:
    """One run of a set: a recipe with varied values and a seed."""

    given: str  # the recipe as a command names it
    recipe: Recipe
    overrides: tuple[str, ...]  # of the varied keys and the seed
    folder: Path
    row: str
    column: str
    shown: bool = True  # in the table
    checkpoint: str | None = None  # what finetune.py starts from
    source: Path | None = None  # the folder of the run of this set that `checkpoint` is

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def data_dir(self) -> str | None:
        return self.recipe.data.dir


@dataclass(frozen=True)
class Sweep:
    """A set of runs below one folder."""

    name: str
    definition: Definition
    folder: Path
    members: list[Member]
    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


# ---- reading -------------------------------------------------------------------------------------


def read_definitions(path: Path = FILE) -> dict[str, Definition]:
    """Return the entries of a file of sets. Raises UserErrors with every mistake found."""
    errors: list[UserError] = []
    tree: dict[str, Any] = {}
    for key, value in read_file(path, errors).items():
        # keys of recipes have dots of their own, so the parts below an entry's key stay together
        section = tree
        for part in key[:-1]:
            section = section.setdefault(part, {})
        section[key[-1]] = value.value
    definitions = {}
    for name, values in tree.items():
        if not isinstance(values, dict):
            errors.append(UserError(display(path), f"'{short(name)}' must be a section"))
            continue
        try:
            definitions[name] = Definition.model_validate(values)
        except ValidationError as error:
            where = f"{display(path)}: {name}"
            errors += [_explain(where, one) for one in error.errors()]
    if errors:
        raise UserErrors(errors)
    return definitions


def _explain(where: str, error: dict) -> UserError:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        instead = nearest(key, Definition.model_fields) or listed(list(Definition.model_fields), 20)
        return UserError(where, f"no such key '{short(key)}'", instead)
    what = error["msg"].removeprefix("Value error, ")
    return UserError(
        where, f"'{key}': {what}, not {short(json.dumps(error['input'], default=str))}"
    )


def make_sweep(
    name: str, definition: Definition, folder: Path, data_dirs: Mapping[str, str] = NOTHING
) -> Sweep:
    """Return the runs of a set, in the order of its recipes, values and seeds.

    data_dirs: folder of each data set by name; that of "" is for all others.
    Raises UserErrors for recipes or values that do not exist or that `rows` and `columns` cannot
    tell apart.
    """
    entries = _matching(definition.recipes)
    varied = [
        dict(zip(definition.vary, values, strict=True))
        for values in itertools.product(*definition.vary.values())
    ]
    count = len(entries) * len(varied) * len(definition.seeds)
    if count > MOST_RUNS:
        raise UserError(name, f"has {count:,} runs, the most are {MOST_RUNS:,}", "narrow it")
    members: list[Member] = []
    errors: list[UserError] = []
    for entry, values in itertools.product(entries, varied):
        try:
            members += _members(entry, values, definition, folder, data_dirs)
        except UserErrors as several:
            errors += several.args[0]
        except UserError as error:
            errors.append(error)
    if errors:
        raise UserErrors(list({str(error): error for error in errors}.values()))
    _check_folders(members)
    shown = [member for member in members if member.shown]
    rows = list(dict.fromkeys(member.row for member in shown))
    columns = list(dict.fromkeys(member.column for member in shown))
    if definition.against is not None and definition.against not in columns:
        what = f"no column is called '{short(definition.against)}'"
        raise UserError(f"{name}: against", what, listed(columns, 10))
    return Sweep(name, definition, folder, members, rows, columns)


def _matching(patterns: Iterable[str]) -> list[catalogue.Entry]:
    """Return the recipes that patterns name, each once, in the order of patterns and names."""
    found: dict[str, catalogue.Entry] = {}
    for pattern in patterns:
        if any(letter in pattern for letter in "*?["):
            names = [name for name in catalogue.names() if fnmatchcase(name, pattern)]
            if not names:
                raise UserError("recipes", f"no recipe matches '{short(pattern)}'", "see --list")
            found.update((name, catalogue.names()[name]) for name in names)
        else:
            entry = catalogue.find(pattern)
            found[entry.name] = entry
    return list(found.values())


def _members(
    entry: catalogue.Entry,
    values: dict[str, Any],
    definition: Definition,
    folder: Path,
    data_dirs: Mapping[str, str],
) -> Iterator[Member]:
    """The runs of one recipe with one combination of varied values, one per seed and start."""
    given = _given(entry)
    texts = {key: value_text(value) for key, value in values.items()}
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    recipe = load_recipe(given, overrides)
    if DATASETS[recipe.data.name].on_disk:
        folder_of_data = data_dirs.get(recipe.data.name, data_dirs.get(""))
        data = recipe.data.model_copy(update={"dir": folder_of_data or recipe.data.dir})
        recipe = recipe.model_copy(update={"data": data})
    axes = entry.family.members[entry.name] if entry.family else {}
    words = {axis: option or PLAIN for axis, option in axes.items()} | texts
    shown = fnmatchcase(recipe.name, definition.show)
    several = definition.checkpoint.items()
    starts = next((one for pattern, one in several if fnmatchcase(recipe.name, pattern)), None)
    varied = "".join(f",{key}={text}" for key, text in texts.items())
    for start in starts if isinstance(starts, list) else [starts]:
        of_set = start in catalogue.names()
        origin = start if of_set else recipe.name
        row = label(definition.rows, origin, words | {"from": origin}) if shown else ""
        column = label(definition.columns, origin, words | {"from": origin}) if shown else ""
        own = f",from={value_text(start)}" if isinstance(starts, list) else ""
        for seed in definition.seeds:
            source = folder / f"{start}{varied}" / f"seed{seed}" if of_set else None
            yield Member(
                given=given,
                recipe=recipe.model_copy(update={"seed": seed}),
                overrides=(*overrides, f"seed={seed}"),
                folder=folder / f"{recipe.name}{varied}{own}" / f"seed{seed}",
                row=row,
                column=column,
                shown=shown,
                checkpoint=str(source) if source else start,
                source=source,
            )


def _given(entry: catalogue.Entry) -> str:
    """Return a recipe's name, or FILE or FILE:NAME if it is not below recipes/."""
    if entry.name in catalogue.names():
        return entry.name
    return f"{entry.path}:{entry.name}" if entry.family else str(entry.path)


def value_text(value: Any) -> str:
    """Return a varied value for folders and tables: no spaces, quotes or slashes."""
    if value is None:
        return "null"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_") or "_"


def label(spec: Label, name: str, words: dict[str, str]) -> str:
    """Return what a run is called in the table's rows or columns.

    spec: `recipe`, an axis of the recipe's family, a varied key or `from`; a list of these; or
    labels with the pattern of recipes' names that each is for. `name` is the recipe's or, of a run
    that starts from another, that one's. Raises UserError if it names nothing.
    """
    if isinstance(spec, dict):
        found = next((text for text, pattern in spec.items() if fnmatchcase(name, pattern)), None)
        if found is None:
            raise UserError("rows and columns", f"no label is for {name}", "add its pattern")
        return found
    if isinstance(spec, list):
        return " ".join(label(one, name, words) for one in spec)
    known = {"recipe": name, "": ""} | words
    if spec not in known:
        what = f"'{short(spec)}' tells nothing of {name}"
        raise UserError("rows and columns", what, f"known are {listed(list(known), 12)}")
    return known[spec]


def _check_folders(members: list[Member]) -> None:
    """Raise UserError if two runs would share a folder, or one starts from a run that is not."""
    by_folder: dict[Path, Member] = {}
    for member in members:
        if member.folder in by_folder:
            what = f"two runs share the folder {member.folder}"
            raise UserError("vary", what, "give values that differ in their names")
        by_folder[member.folder] = member
    missing = [member for member in members if member.source and member.source not in by_folder]
    if missing:
        what = f"{missing[0].recipe.name} starts from {missing[0].source}, which is not in the set"
        raise UserError("checkpoint", what, "add its recipe to the set")


def describe(sweep: Sweep) -> str:
    """Return a set's size on one line."""
    seeds = plural(len(sweep.definition.seeds), "seed")
    recipes = len({member.folder.parent for member in sweep.members})
    runs = plural(len(sweep.members), "run")
    return f"{sweep.name}: {runs}, {plural(recipes, 'experiment')} x {seeds}, in {sweep.folder}"
