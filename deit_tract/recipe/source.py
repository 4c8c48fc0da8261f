"""Recipe files as text: YAML to flat {key path: value}, each value with its file and line."""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deit_tract.common.errors import UserError
from deit_tract.common.text import on_one_line, short

ROOT = Path(__file__).resolve().parents[2]
KeyPath = tuple[str, ...]

# Far above any recipe's: beyond them a file is something else, or takes minutes to read
FILE_BYTES, DEPTH, KEY = 2**18, 20, 100
SECTION = "tag:yaml.org,2002:map"
LIST = "tag:yaml.org,2002:seq"
ARGS = ("model", "args")  # names and values that the schema does not know: {} drops those of a base


class Value(NamedTuple):
    value: Any
    origin: str  # "recipes/vit_s.yaml:12", "--set optim.lr=1e-3" or "default"


Values = dict[KeyPath, Value]


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `4e-3` is a number, `yes` is text, 012 is twelve; no aliases."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark
            problem = "aliases are not allowed in a recipe"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return super().compose_node(parent, index)


_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_SCALARS = {  # tag: pattern, first characters (\0 is the empty scalar), conversion
    "tag:yaml.org,2002:null": (r"(?:~|null|)", "~n\0", lambda text: None),
    "tag:yaml.org,2002:bool": (r"(?:true|false)", "tf", lambda text: text == "true"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789", int),
    "tag:yaml.org,2002:float": (_FLOAT, "-+.0123456789", float),
    "tag:yaml.org,2002:str": (None, "", str),
}
for _tag, (_pattern, _first, _) in _SCALARS.items():
    if _pattern:
        # PyYAML looks an empty scalar up under "", every other one under its first character
        _letters = [letter.strip("\0") for letter in _first]
        _StrictLoader.add_implicit_resolver(_tag, re.compile(f"^{_pattern}$"), _letters)


def is_file(path: Path) -> bool:
    """Return whether a path is a file; a name that no file can have is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """Read a recipe file. Raises UserError if it cannot be read or is too large to be one."""
    try:
        size = path.stat().st_size
        if size > FILE_BYTES:
            what = f"has {size:,} bytes, no recipe has more than {FILE_BYTES:,}"
            raise UserError(display(path), what)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(display(path), f"cannot be read ({error})") from None


def read_file(path: Path, errors: list[UserError]) -> Values:
    """Read one file, without its base; adds its mistakes to `errors`. Equal text is parsed once."""
    values, found = _parse_file(read_text(path), display(path))
    errors += found
    return dict(values)


@lru_cache(maxsize=256)
def _parse_file(text: str, where: str) -> tuple[Values, list[UserError]]:
    errors: list[UserError] = []
    return parse(text, lambda line: f"{where}:{line}", errors), errors


def parse_override(text: str, errors: list[UserError]) -> Values:
    """Parse `section.key=value` of --set; the value is read as YAML."""
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
    if path == ARGS and not values:
        return {ARGS: Value({}, origin)}
    return {path + sub[1:]: value for sub, value in values.items()}


def parse(text: str, origin: Callable[[int], str], errors: list[UserError]) -> Values:
    """Parse YAML into flat values; `origin(line)` names a line, mistakes are added to `errors`."""
    try:
        node = yaml.compose(text, Loader=_StrictLoader)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode) or node.tag != SECTION:
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
        key = key_node.value
        line = key_node.start_mark.line + 1
        path = (*prefix, str(key))
        if not isinstance(key_node, yaml.ScalarNode) or not _is_text(key):
            errors.append(UserError(origin(line), "a key must be plain text"))
        elif len(key) > KEY:
            errors.append(UserError(origin(line), f"'{short(key)}' is too long for a key"))
        elif len(path) > DEPTH:
            errors.append(UserError(origin(line), f"nested deeper than {DEPTH} keys"))
        elif key in lines:
            what = f"'{'.'.join(path)}' is already set in line {lines[key]}"
            errors.append(UserError(origin(line), what, "keep one of them"))
        elif isinstance(node, yaml.MappingNode) and node.tag == SECTION:
            values |= _flatten(node, path, origin, errors)
            if not node.value and path[0] == "options":  # an option that changes nothing
                values[path] = Value(None, origin(line))
            elif not node.value and path == ARGS:
                values[path] = Value({}, origin(line))
        else:
            values[path] = Value(_plain(node, origin, errors, len(path)), origin(line))
        lines.setdefault(str(key), line)
    return values


def _is_text(value: str) -> bool:
    """Return whether text can be written again; YAML's "\\ud800" cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _plain(node: yaml.Node, origin, errors, depth: int) -> Any:
    """Convert a scalar or a list of them."""
    where = origin(node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode) and node.tag == LIST:
        if depth < DEPTH:
            return [_plain(item, origin, errors, depth + 1) for item in node.value]
        errors.append(UserError(where, f"nested deeper than {DEPTH} lists"))
        return None
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
        kind = short(node.tag.removeprefix("tag:yaml.org,2002:"))
        errors.append(UserError(where, f"{kind} is not a value of a recipe"))
        return None
    if not _is_text(node.value):
        errors.append(UserError(where, "half a character is not a value of a recipe"))
        return None
    try:
        return _SCALARS[node.tag][2](node.value)
    except ValueError:
        # an explicit tag on other text, or an integer beyond Python's conversion limit
        what = f"'{node.value[:40]}' is not a valid {node.tag.rpartition(':')[2]}"
        errors.append(UserError(where, what))
        return None


def merge(lower: Values, upper: Values) -> Values:
    """Merge `upper` over `lower`, deep per key; a duration displaces one in the other unit."""
    displaced = {_twin(path) for path, value in upper.items() if value.value is not None}
    # a value gives way to a section of that name, and a section to a value
    replaced = {path[:length] for path in upper for length in range(1, len(path) + 1)}

    def stays(path: KeyPath) -> bool:
        if path in replaced or path in displaced:
            return False
        return not any(path[:length] in upper for length in range(1, len(path)))

    return {path: value for path, value in lower.items() if stays(path)} | upper


def _twin(path: KeyPath) -> KeyPath | None:
    """Return the other spelling of a duration: schedule.epochs for schedule.steps, and back."""
    for unit, other in (("epochs", "steps"), ("steps", "epochs")):
        if path[-1].endswith(unit):
            return (*path[:-1], path[-1].removesuffix(unit) + other)
    return None


def display(path: Path) -> str:
    """Return a path as a message shows it: relative to the checkout if it lies inside."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
