"""Family files: one YAML file that holds a grid of recipes, its members.

    family: "{data}_resnet18_{run}{arm}"   # the members' names
    about: "ResNet-18 on {data.about}"
    model: {name: resnet18_cifar}          # what all have, as in any recipe
    options:                               # axis: option: what it sets
      data: {cifar10: {about: CIFAR-10, data: {...}}, cifar100: {...}}
      run: {sgd_100ep: {...}, adam_100ep: {...}}
      arm: {"": {}, _tract: {model: {tract: 0.1}}, _sgdfirst: {only: {data: cifar10}, optim: {...}}}

A member takes one option of each axis, merged over the common part in the axes' order; `only` names
the options of other axes that an option goes with (an axis that this decides needs no place in the
pattern). In every text `{axis}` is the option's name and `{axis.about}` its `about`.
"""

import itertools
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.common.text import nearest, short
from deit_tract.recipe.source import KeyPath, Value, Values, merge, read_file, read_text

MEMBERS = 2000
WORD = re.compile(r"\{([^{}]*)\}")
Choice = dict[str, str]  # axis: option


class Option(NamedTuple):
    about: Value | None
    only: dict[str, Value]  # other axis: list of its options
    values: Values


Axes = dict[str, dict[str, Option]]


class Family(NamedTuple):
    pattern: Value
    common: Values
    axes: Axes
    members: dict[str, Choice]  # by name, in the axes' order


def read_family(path: Path) -> Family | None:
    """Read a family file; None if it is a single recipe. Raises UserErrors with its mistakes."""
    if not re.search(r"\b(family|options)\b", read_text(path)):
        return None
    errors: list[UserError] = []
    values = read_file(path, errors)
    own = {key: value for key, value in values.items() if key[0] in ("family", "options")}
    if not own:
        return None
    pattern = own.pop(("family",), None)
    if pattern is None or not isinstance(pattern.value, str):
        where = (pattern or next(iter(own.values()))).origin
        errors.append(UserError(where, "'family' must be the pattern of its members' names"))
    elif not own:
        errors.append(UserError(pattern.origin, "a family needs 'options'", "give it an axis"))
    axes: Axes = {}
    for key, value in own.items():
        _set_option(axes, key[1:], value, errors)
    common = {key: value for key, value in values.items() if key[0] not in ("family", "options")}
    _check_only(axes, errors)
    if not errors:
        _check_words(pattern, common, axes, errors)
    if errors:
        raise UserErrors(errors)
    return Family(pattern, common, axes, _members(pattern, axes))


def member_values(family: Family, name: str) -> Values:
    """Return a member's values: its options over the common part, the words in texts filled in."""
    choice = family.members[name]
    words = dict(choice)
    values = family.common
    for axis, option in choice.items():
        about = family.axes[axis][option].about
        if about:
            words[f"{axis}.about"] = _fill(about.value, choice)
        values = merge(values, family.axes[axis][option].values)
    return {path: Value(_fill(value, words), origin) for path, (value, origin) in values.items()}


def _set_option(axes: Axes, path: KeyPath, value: Value, errors: list[UserError]) -> None:
    """Add one value below `options` to its axis and option."""

    def refuse(what: str, instead: str = "") -> None:
        errors.append(UserError(value.origin, what, instead))

    if len(path) == 0:
        return refuse("'options' must be a section of axes")
    if len(path) == 1:
        names = _names(value)
        if not names or len(set(names)) < len(names):
            return refuse(f"axis '{short(path[0])}' must be a section or a list of different names")
        axes[path[0]] = {name: Option(None, {}, {}) for name in names}
        return None
    axis, name, *key = path
    option = axes.setdefault(axis, {}).setdefault(name, Option(None, {}, {}))
    value = Value(value.value, f"{value.origin} ({axis} {name or repr(name)})")
    if not key:
        return refuse("an option must be a section") if value.value is not None else None
    if key[0] == "about":
        if not isinstance(value.value, str):
            return refuse("'about' must be text")
        axes[axis][name] = option._replace(about=value)
    elif key[0] == "only":
        names = _names(value) or _names(Value([value.value], value.origin))
        if len(key) != 2 or not names:
            return refuse("'only' must read axis: option, or axis: [options]")
        option.only[key[1]] = Value(names, value.origin)
    elif key[0] in ("base", "family", "options"):
        return refuse(f"'{key[0]}' has no place in an option", "set it in the common part")
    else:
        option.values[tuple(key)] = value
    return None


def _names(value: Value) -> list[str]:
    """Return a list of texts and whole numbers as texts; empty for anything else."""
    names = value.value if isinstance(value.value, list) else []
    return [str(name) for name in names] if all(type(name) in (str, int) for name in names) else []


def _check_only(axes: Axes, errors: list[UserError]) -> None:
    for own, options in axes.items():
        others = {axis: options for axis, options in axes.items() if axis != own}
        for axis, only in (item for option in options.values() for item in option.only.items()):
            known = others.get(axis, {})
            for name in set(only.value) - known.keys():
                what = (
                    f"'only' names option '{short(name)}' of axis '{short(axis)}', which is not one"
                )
                instead = nearest(name, known) if known else nearest(axis, others)
                errors.append(UserError(only.origin, what, instead))


def _check_words(pattern: Value, common: Values, axes: Axes, errors: list[UserError]) -> None:
    """Report each `{word}` in the file's texts that stands for nothing."""
    options = [option for options in axes.values() for option in options.values()]
    told = [axis for axis in axes if all(option.about for option in axes[axis].values())]
    words = [*axes, *(f"{axis}.about" for axis in told)]
    texts = [
        (words, text) for part in (common, *(o.values for o in options)) for text in part.values()
    ]
    texts += [(list(axes), text) for text in (pattern, *(o.about for o in options)) if text]
    for known, (text, origin) in texts:
        for word in set(_used(text)) - set(known):
            what = f"nothing is called '{{{short(word)}}}'"
            errors.append(UserError(origin, what, f"known are {', '.join(known)}"))


def _members(pattern: Value, axes: Axes) -> dict[str, Choice]:
    count = math.prod(map(len, axes.values()))
    if count > MEMBERS:
        raise UserError(pattern.origin, f"has {count:,} members, the most are {MEMBERS:,}")
    members: dict[str, Choice] = {}
    for names in itertools.product(*axes.values()):
        choice = dict(zip(axes, names, strict=True))
        chosen = [axes[axis][name] for axis, name in choice.items()]
        if any(choice[axis] not in only.value for one in chosen for axis, only in one.only.items()):
            continue
        name = _fill(pattern.value, choice)
        if name in members:
            instead = "the pattern needs each {axis}, and options that tell members apart"
            raise UserError(pattern.origin, f"two members are called '{short(name)}'", instead)
        if not re.fullmatch(r"\w[\w.+-]*", name) or name.endswith((".yaml", ".yml")):
            raise UserError(pattern.origin, f"'{short(name)}' cannot name a recipe")
        members[name] = choice
    if not members:
        raise UserError(pattern.origin, "has no members", "'only' excludes every combination")
    return members


def _used(value: Any) -> list[str]:
    """Return the words in a text, or in the texts of a list."""
    if isinstance(value, list):
        return [word for item in value for word in _used(item)]
    return WORD.findall(value) if isinstance(value, str) else []


def _fill(value: Any, words: Choice) -> Any:
    if isinstance(value, list):
        return [_fill(item, words) for item in value]
    return WORD.sub(lambda match: words[match[1]], value) if isinstance(value, str) else value
