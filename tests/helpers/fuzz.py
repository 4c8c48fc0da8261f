"""Broken recipes. Case i is drawn from random.Random(i); a failure names i and prints all of it."""

import contextlib
import json
import random
import re
import signal
from collections.abc import Iterable

import pytest

from deit_tract.common.errors import UserError
from deit_tract.recipe import catalogue
from deit_tract.recipe.describe import differences, explain, leaves
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.settings.base import fields

CASES = 1000
ENTRIES = catalogue.names()
TEXTS = {name: entry.path.read_text(encoding="utf-8") for name, entry in ENTRIES.items()}
EXECUTED = "EXECUTED"  # replaced by the file that a payload would write

VALUES = [
    *(
        "",
        "~",
        "null",
        "true",
        "yes",
        "NO",
        "on",
        "0",
        "-1",
        "1",
        "-0",
        "0.5",
        "4e-3",
        "0x10",
        "0o17",
        "1_000",
        "1:30",
    ),
    *(
        "1e999",
        "-1e999",
        ".nan",
        ".inf",
        "nan",
        "NaN",
        "1e-320",
        "1e308",
        "9" * 19,
        "-" + "9" * 30,
        "9" * 400,
        "9" * 5000,
    ),
    *(
        "'",
        '"',
        "'a'",
        '"\\ud800"',
        '"\\x00"',
        '"\\e[31m"',
        '"\\N"',
        '"a\\nb"',
        "|\n  text\n",
        ">-\n  text\n",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "[]",
        "{}",
        "[1, 2",
        "[1, [2, [3]]]",
        "[{a: 1}]",
        "{a: {b: {c: 1}}}",
        "{a: {'x y': 1}}",
    ),
    *(
        "[0.5]",
        "[0.1, 0.2, 0.3, 0.4]",
        "[1e999, 1]",
        "? x",
        "? [1, 2]\n: 3",
        "- 1",
        "--- 1",
        "...",
        "%YAML 9.9",
        "# x",
    ),
    *(
        "ü中文🎉",
        "\u202egnirts",
        "\u2028",
        "\x85",
        "\ufeff",
        "\x7f",
        "\x00",
        "\t",
        "@",
        "`",
        "%",
        "2026-11-21",
    ),
    *(
        "&a 1",
        "*a",
        "&a [*a]",
        "<<",
        "<<: *a",
        "!!str 5",
        "!!int five",
        "!!float [1]",
        "!!binary aGk=",
        "!!set {a, b}",
    ),
    *(
        "!!omap [a: 1]",
        "!!timestamp 2026-11-21",
        "!x 1",
        "!!python/name:os.system",
        "!!python/module:os",
    ),
    *("!!python/tuple [1, 2]", "!!python/object/new:os.system [true]"),
    f"!!python/object/apply:os.system ['touch {EXECUTED}']",
    f"!!python/object/apply:subprocess.Popen [[touch, {EXECUTED}]]",
    "!!python/object/new:type {args: [z, [], {}], state: "
    f"!!python/object/apply:os.system ['touch {EXECUTED}']}}",
    *(
        f"__import__('os').system('touch {EXECUTED}')",
        f"$(touch {EXECUTED})",
        "${HOME}",
        "{{ 7 * 7 }}",
        "../../etc/passwd",
    ),
    *(
        "[" * 50 + "]" * 50,
        "[" * 3000,
        "{a: " * 200 + "1" + "}" * 200,
        "{a: " * 3000,
        "x" * 2000,
        "x" * 200_000,
        "- " * 500,
    ),
]
BASES = [
    "quickstart",
    "vit_s_800ep",
    "cycle",
    "mine",
    "",
    "..",
    "/",
    "a/b",
    "/dev/null",
    "/dev/zero",
    ".",
    '"a\\0b"',
]
BASES += ["x" * 300, "q" * 5000, "~", "[quickstart]", "1"]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
KEYS = [path for path, _ in fields(Recipe)]
ODD = [
    *(None, True, 0, -1, 1, 3, 7, 64, 10**6, 2**31, 2**63, 10**30, -(10**30), 10**400),
    *(0.0, -0.5, 0.5, 1e-300, 1e300, 1.7e308, float("inf"), float("nan")),
    *("", "x", "imagenet", "synthetic", "中🎉", "a\nb", "\x00", "\ud800", "\u2028", "\U000e0001"),
    *(
        [],
        [1],
        [0.0, 0.0],
        [2.0, 1.0],
        [1] * 1000,
        ["x"],
        [[1]],
        {},
        {"x": 1},
        {"": 1},
        {"a b": 2},
        {"depth": 2},
    ),
    *({"a.b": {"c: d": "# e"}}, {"checkpoint_path": EXECUTED}, {"pretrained": True}),
]


# ---- mutations -----------------------------------------------------------------------------------


def mutate_text(text: str, rng: random.Random) -> str:
    """One change of a recipe's text: lines, characters, or one value."""
    lines = text.splitlines(keepends=True) or ["\n"]
    at = rng.randrange(len(lines))
    line, value = lines[at], rng.choice(VALUES)
    kind = rng.randrange(14)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, rng.choice(lines))
    elif kind == 2:
        lines[at] = re.sub(r": *[^#\n{\[]+", lambda _: f": {value} ", line, count=1)
    elif kind == 3:
        lines[at] = re.sub(r"\w+:", lambda _: f"{value}:", line, count=1)
    elif kind == 4:
        lines[at] = re.sub(r"(\w+):", lambda m: f"{scrambled(m.group(1), rng)}:", line, count=1)
    elif kind == 5:
        lines[at] = rng.choice(["\t", " ", "   "]) + line
    elif kind == 6:
        lines[at] = line.rstrip("\n") + rng.choice(
            ["\r\n", "\r", "\x85", "\u2028", "", " #", "\t# x\n"]
        )
    elif kind == 7:
        lines.insert(at, f"{'.'.join(rng.choice(KEYS))}: {value}\n")
    elif kind == 8:
        path = rng.choice(KEYS)
        lines.append(
            "".join(
                f"{'  ' * i}{key}:{'' if key != path[-1] else ' ' + value}\n"
                for i, key in enumerate(path)
            )
        )
    elif kind == 9:
        lines.insert(at, BOMB)
    elif kind == 10:
        lines.insert(
            0,
            rng.choice(["%TAG ! tag:x,2000:\n---\n", "---\n", "\ufeff", "{", "- ", "x\n", "...\n"]),
        )
    elif kind == 11:
        start = rng.randrange(len(text) + 1)
        return (
            text[:start]
            + rng.choice(["", value, chr(rng.randrange(0x110000 - 0x800))])
            + text[start + rng.randrange(20) :]
        )
    elif kind == 12:
        lines = [
            f"base: {rng.choice(BASES)}\n",
            *(one for one in lines if not one.startswith("base:")),
        ]
    else:
        rng.shuffle(lines)
    return "".join(lines)


def scrambled(word: str, rng: random.Random) -> str:
    letters = list(word)
    for _ in range(rng.randrange(1, 4)):
        letters.insert(rng.randrange(len(letters) + 1), rng.choice("aeiou_-. 中\u0130"))
    return "".join(letters)


def mutate_tree(tree: dict, rng: random.Random) -> None:
    """One change of a tree of values, in place: set, delete, rename, move, or nest."""
    place = tree
    for _ in range(rng.randrange(1, 3)):
        below = [value for value in place.values() if isinstance(value, dict)]
        if below and rng.random() < 0.7:
            place = rng.choice(below)
    key = rng.choice(list(place)) if place else "x"
    kind = rng.randrange(7)
    if kind <= 2:
        place[key] = rng.choice(ODD)
    elif kind == 3:
        place.pop(key, None)
    elif kind == 4:
        place[scrambled(key, rng)] = place.pop(key, 1)
    elif kind == 5:
        tree.setdefault("model", {})
        if isinstance(tree["model"], dict):
            tree["model"]["args"] = rng.choice(ODD)
    else:
        place[key] = {key: place.get(key)}


def nested(recipe: Recipe) -> dict:
    tree: dict = {}
    for path, (value, _) in leaves(recipe).items():
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return tree


def override(rng: random.Random) -> str:
    key = ".".join(rng.choice(KEYS))
    odd = [
        scrambled(key, rng),
        f"{key}.x",
        key.partition(".")[0],
        "",
        ".",
        "..",
        f"model.args.{scrambled('x', rng)}",
    ]
    odd += [
        "model.args.depth",
        "model.args." + "k" * 3000,
        "model.args" + ".k" * 100,
        "\x00",
        "a\nb",
    ]
    value = rng.choice([rng.choice(VALUES), str(rng.randrange(10)), "1\nx: 2", "1\ny: 2"])
    return (
        (key if rng.random() < 0.4 else rng.choice(odd))
        + rng.choice(["=", "=", "=", "=", "==", "", " = "])
        + value
    )


def case(i: int, folder) -> tuple[str, list[str]]:
    """The file and the overrides of case i; what a payload would write is named in them."""
    rng = random.Random(i)
    name = rng.choice(list(TEXTS))
    mine, overrides = folder / "mine.yaml", []
    if i % 4 == 0:
        tree = nested(load_recipe(name))
        for _ in range(rng.choice([1, 1, 2, 4])):
            mutate_tree(tree, rng)
        data = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    else:
        text = TEXTS[name]
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            text = mutate_text(text, rng)
        data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.04:
        data = bytearray(data)
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data)) if data else 0 : 0] = bytes([rng.randrange(256)])
    if rng.random() < 0.01:
        data = rng.randbytes(rng.choice([0, 1, 1000, 100_000]))
    if rng.random() < 0.3:
        overrides = [override(rng) for _ in range(rng.randrange(1, 4))]
    mine.write_bytes(bytes(data).replace(EXECUTED.encode(), str(folder / EXECUTED).encode()))
    (folder / "cycle.yaml").write_text("base: mine\n")
    file = f"{mine}:{name}" if i % 4 and ENTRIES[name].family else str(mine)
    return file, [one.replace(EXECUTED, str(folder / EXECUTED)) for one in overrides]


# ---- what must hold ------------------------------------------------------------------------------


@contextlib.contextmanager
def at_most(seconds: int):
    """A hang is a failure."""

    def stop(*_):
        raise AssertionError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_lines(error: UserError) -> None:
    """Each mistake is one line that a terminal and a file can take."""
    count = len(error.args[0]) if isinstance(error.args[0], list) else 1
    lines = str(error).splitlines()
    assert len(lines) == count >= 1 and all(line.strip() for line in lines), lines
    for line in lines:
        line.encode()
        assert line.isprintable() and len(line) < 2000, line[:2000]


def check(file: str, overrides: list[str], folder) -> Recipe | None:
    try:
        recipe = load_recipe(file, overrides)
    except UserError as error:
        assert_lines(error)
        return None
    again = folder / "again.yaml"
    again.write_text(explain(recipe), encoding="utf-8")
    back = load_recipe(str(again))
    assert back.model_dump() == recipe.model_dump() and differences(recipe, back) == []
    return recipe


def assert_mistakes(cases: Iterable[int], folder) -> None:
    """Each of these cases is a valid recipe or lines that say what is wrong, and runs nothing."""
    for i in cases:
        file, overrides = case(i, folder)
        try:
            with at_most(60):
                check(file, overrides, folder)
            assert not (folder / EXECUTED).exists(), "a payload was executed"
        except BaseException as error:
            text = (folder / "mine.yaml").read_bytes()
            what = f"{type(error).__name__}: {str(error)[:2000]}"
            pytest.fail(f"case {i}: {what}\n--set {overrides!r:.3000}\n{text!r:.20000}")
