"""Recipe files as text: YAML to flat {key path: value}, each value with the file and line it comes from."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deit_tract.common.errors import UserError
from deit_tract.common.text import nearest, on_one_line, short

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
KeyPath = tuple[str, ...]

# Far above any recipe's; beyond them a file is something else, and takes minutes to read or fails deep inside
FILE_BYTES, CHAIN, DEPTH, KEY = 2**18, 20, 20, 100


class Value(NamedTuple):
    value: Any
    origin: str  # "recipes/vit_s.yaml:12", "--set optim.lr=1e-3" or "default"


Values = dict[KeyPath, Value]


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `4e-3` is a number, `yes` is text, 012 is twelve, a date is text; no aliases."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed in a recipe", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


_SCALARS = {
    "tag:yaml.org,2002:null": (r"(?:~|null|)", "~n\0", lambda text: None),
    "tag:yaml.org,2002:bool": (r"(?:true|false)", "tf", lambda text: text == "true"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789", int),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
        float,
    ),
    "tag:yaml.org,2002:str": (None, "", str),
}
for _tag, (_pattern, _first, _) in _SCALARS.items():
    if _pattern:
        # an empty scalar is looked up under "" by PyYAML, every other one under its first character
        _StrictLoader.add_implicit_resolver(
            _tag, re.compile(f"^{_pattern}$"), [c.strip("\0") for c in _first]
        )


def find(name: str) -> Path:
    """The file of a recipe NAME below recipes/, or FILE itself. Raises UserError with the nearest name."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if not _is_file(Path(name)):
            raise UserError(short(name, 500), "no such recipe file")
        return Path(name)
    files = names()
    if name not in files:
        raise UserError(
            "recipe", f"no recipe '{short(name)}'", nearest(name, files) or "see --list"
        )
    return files[name]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def names() -> dict[str, Path]:
    """Every shipped recipe: name to file, sorted by name."""
    return {path.stem: path for path in sorted(RECIPES.rglob("*.yaml"), key=lambda path: path.stem)}


def read_chain(path: Path, errors: list[UserError], seen: tuple[Path, ...] = ()) -> Values:
    """A recipe file over its `base`, over that one's, and so on; what is wrong in a file is added to `errors`.

    Raises UserError where reading cannot go on: a cycle, an unknown base, a file that is no YAML.
    """
    path = path.resolve()
    if path in seen:
        cycle = " -> ".join(p.stem for p in (*seen[seen.index(path) :], path))
        raise UserError(
            display(path), f"base goes round in a circle: {cycle}", "remove one of them"
        )
    if len(seen) > CHAIN:
        raise UserError(
            display(path),
            f"is the end of more than {CHAIN} bases, each on the next",
            "join some of them",
        )
    values = read_file(path, errors)
    base = values.pop(("base",), None)
    if base is None:
        return values
    if not isinstance(base.value, str):
        raise UserError(base.origin, "'base' must be a recipe's name")
    beside = path.parent / f"{base.value}.yaml"
    try:
        lower = beside if _is_file(beside) else find(base.value)
    except UserError as error:
        raise UserError(base.origin, *error.args[1:]) from None
    return merge(read_chain(lower, errors, (*seen, path)), values)


def read_file(path: Path, errors: list[UserError]) -> Values:
    """One file, flattened, without its base."""
    where = display(path)
    try:
        if path.stat().st_size > FILE_BYTES:
            raise UserError(
                where, f"has {path.stat().st_size:,} bytes, no recipe has more than {FILE_BYTES:,}"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(where, f"cannot be read ({error})") from None
    return parse(text, lambda line: f"{where}:{line}", errors)


def parse_override(text: str, errors: list[UserError]) -> Values:
    """`section.key=value` of --set, the value read as YAML."""
    key, equals, value = text.partition("=")
    origin = on_one_line(f"--set {short(text, 200)}")
    if not equals or not key:
        raise UserError(origin, "must read section.key=value")
    path = tuple(key.strip().split("."))
    if max(map(len, path)) > KEY or len(path) > DEPTH:
        raise UserError(origin, f"'{short(key)}' is too long for a key")
    values = parse(f"x: {value}", lambda line: origin, errors)
    if any(sub[0] != "x" for sub in values):
        raise UserError(origin, "sets more than one key", "give each a --set of its own")
    return {path + sub[1:]: value for sub, value in values.items()}


def parse(text: str, origin: Callable[[int], str], errors: list[UserError]) -> Values:
    """YAML text to flat values; `origin(line)` names the place of a line, `errors` takes what is wrong there."""
    try:
        node = yaml.compose(text, Loader=_StrictLoader)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode) or node.tag != "tag:yaml.org,2002:map":
            raise UserError(origin(1), "must be a list of `section:` entries")
        return _flatten(node, (), origin, errors)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(origin(line), f"not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(origin(1), f"not valid YAML ({' '.join(str(error).split())})") from None


def _flatten(mapping: yaml.MappingNode, prefix: KeyPath, origin, errors) -> Values:
    values: Values = {}
    lines: dict[str, int] = {}
    for key_node, node in mapping.value:
        line, key = key_node.start_mark.line + 1, key_node.value
        path = (*prefix, str(key))
        if not isinstance(key_node, yaml.ScalarNode) or not _is_text(key):
            errors.append(UserError(origin(line), "a key must be plain text"))
        elif len(key) > KEY or len(path) > DEPTH:
            what = (
                f"'{short(key)}' is too long for a key"
                if len(key) > KEY
                else f"nested deeper than {DEPTH} keys"
            )
            errors.append(UserError(origin(line), what))
        elif key in lines:
            what = f"'{'.'.join(path)}' is already set in line {lines[key]}"
            errors.append(UserError(origin(line), what, "keep one of them"))
        elif isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            values |= _flatten(node, path, origin, errors)
        else:
            values[path] = Value(_plain(node, origin, errors, len(path)), origin(line))
        lines.setdefault(str(key), line)
    return values


def _is_text(value: str) -> bool:
    """Whether it can be written again; YAML's "\\ud800" cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _plain(node: yaml.Node, origin, errors, depth: int) -> Any:
    """A scalar or a list of them."""
    where = origin(node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        if depth < DEPTH:
            return [_plain(item, origin, errors, depth + 1) for item in node.value]
        errors.append(UserError(where, f"nested deeper than {DEPTH} lists"))
        return None
    if (
        not isinstance(node, yaml.ScalarNode)
        or node.tag not in _SCALARS
        or not _is_text(node.value)
    ):
        kind = (
            "half a character"
            if node.tag in _SCALARS
            else short(node.tag.removeprefix("tag:yaml.org,2002:"))
        )
        errors.append(UserError(where, f"{kind} is not a value of a recipe"))
        return None
    try:
        return _SCALARS[node.tag][2](node.value)
    except (
        ValueError
    ):  # an explicit tag on other text, or an integer beyond Python's conversion limit
        errors.append(
            UserError(where, f"'{node.value[:40]}' is not a valid {node.tag.rpartition(':')[2]}")
        )
        return None


def merge(lower: Values, upper: Values) -> Values:
    """`upper` over `lower`: deep per key; a duration in steps displaces one in epochs and the other way round."""
    displaced = {_twin(path) for path, value in upper.items() if value.value is not None}
    heads = {path[:length] for path in upper for length in range(1, len(path) + 1)}
    kept = {
        path: value
        for path, value in lower.items()
        if path not in heads  # replaced, or a value where `upper` has a section
        and not any(
            path[:length] in upper for length in range(1, len(path))
        )  # a section where `upper` has a value
        and path not in displaced
    }
    return kept | upper


def _twin(path: KeyPath) -> KeyPath | None:
    """The other spelling of a duration: schedule.epochs for schedule.steps, and back."""
    for mine, other in (("epochs", "steps"), ("steps", "epochs")):
        if path[-1].endswith(mine):
            return (*path[:-1], path[-1].removesuffix(mine) + other)
    return None


def display(path: Path) -> str:
    """A path as a message shows it: relative to the checkout where it lies inside."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
