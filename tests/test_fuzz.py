"""A thousand broken recipes at the loader: a valid recipe or its user's mistakes, one line each; nothing is executed.

Case i is drawn from random.Random(i) alone; a failure names i and prints the files and overrides.
"""

import contextlib
import json
import random
import re
import signal

import pytest

from deit_tract.common.errors import UserError
from deit_tract.plan import scaling
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe import source
from deit_tract.recipe.describe import differences, explain, leaves
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.settings.base import fields

CASES = 1000
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in source.names().values()}
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
    f"!!python/object/new:type {{args: [z, [], {{}}], state: !!python/object/apply:os.system ['touch {EXECUTED}']}}",
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


# ---- mutations -------------------------------------------------------------------------------------------------------


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
    return str(mine), [one.replace(EXECUTED, str(folder / EXECUTED)) for one in overrides]


# ---- what must hold --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("first", range(0, CASES, 100))
def test_a_broken_recipe_is_its_users_mistake(first, tmp_path):
    for i in range(first, first + 100):
        file, overrides = case(i, tmp_path)
        try:
            with at_most(60):
                check(file, overrides, tmp_path)
            assert not (tmp_path / EXECUTED).exists(), "a payload was executed"
        except BaseException as error:
            text = (tmp_path / "mine.yaml").read_bytes()
            pytest.fail(
                f"case {i}: {type(error).__name__}: {str(error)[:2000]}\n--set {overrides!r:.3000}\n{text!r:.20000}"
            )


def test_the_cases_are_as_varied_as_they_should_be(tmp_path):
    """Neither all refused nor all fine; what is refused is refused for many reasons."""
    reasons, valid = set(), 0
    for i in range(200):  # about one in fifteen is valid
        try:
            load_recipe(*case(i, tmp_path))
            valid += 1
        except UserError as error:
            reasons |= {
                re.sub(r"'[^']*'|\d+", "", line.partition(": ")[2])[:25]
                for line in str(error).splitlines()
            }
    assert valid >= 10 and len(reasons) >= 20, (valid, reasons)


def test_a_valid_one_can_be_planned_or_says_why_not(tmp_path):
    planned = 0
    for i in range(CASES, 2 * CASES):
        recipe = check(*case(i, tmp_path), tmp_path)
        if recipe is None:
            continue
        try:
            with at_most(60):
                made = make_plan(recipe, tmp_path / "run")
                assert show_plan(made) and scaling.show_scaled(
                    scaling.scale_plan(made, min(3, recipe.batch.lanes))
                )
        except UserError as error:
            assert_lines(error)
        except BaseException as error:
            text = explain(recipe)
            pytest.fail(f"case {i}: {type(error).__name__}: {str(error)[:2000]}\n{text}")
        planned += 1
        if planned == 8:
            return
    pytest.fail(f"{planned} of {CASES} cases are valid")


EXTREME = [
    "data.image_size=2147483647", "data.classes=2147483647", "batch.size=2147483644", "schedule.epochs=1e6",
    "schedule.steps=2147483647", "optim.lr=1.7e308", "model.args.embed_dim=0", "model.args.num_heads=0",
    "model.args.patch_size=0", "model.args.norm_layer=os.system", "model.args.embed_dim=99999999999999999999999",
    "augment.repeats=2147483647", "evaluate.every_epochs=1e-300", "model.tract=1e-320", 'model.name="["',
    'data.dir="\\0"',
]  # fmt: skip


@pytest.mark.parametrize("setting", EXTREME)
def test_an_extreme_value_is_planned_or_refused(tmp_path, setting):
    recipe = load_recipe("quickstart", [setting])
    with contextlib.suppress(UserError), at_most(60):
        assert show_plan(make_plan(recipe, tmp_path / "run"))


def write(folder, text: str, name: str = "mine") -> str:
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as error, at_most(60):
        load_recipe(*arguments)
    assert_lines(error.value)
    return str(error.value)


def test_what_would_never_end_is_refused_at_once(tmp_path):
    assert "aliases are not allowed" in refusal(write(tmp_path, BOMB))
    assert "bytes, no recipe has more than" in refusal(write(tmp_path, "# x\n" * 100_000))
    for i in range(50):
        write(tmp_path, f"base: b{i + 1}\n", f"b{i}")
    assert "the end of more than 20 bases" in refusal(str(tmp_path / "b0.yaml"))
    assert "base goes round in a circle" in refusal(write(tmp_path, "base: mine\n"))
    assert "nested deeper than 20" in refusal(
        write(tmp_path, "base: quickstart\nabout: " + "[" * 40 + "]" * 40)
    )
    assert "not valid YAML" in refusal(write(tmp_path, "about: " + "[" * 100_000))


def test_a_recipe_loads_no_weights_of_its_own():
    for key in ("pretrained=true", "checkpoint_path=a.pth", "pretrained_cfg={file: a.pth}"):
        assert "a recipe loads no weights" in refusal("quickstart", [f"model.args.{key}"])


def test_one_override_sets_one_key():
    assert "sets more than one key" in refusal("quickstart", ["model.args.x=1\nseed: 5"])


@pytest.mark.parametrize(
    "text",
    [
        "\x7f",
        "\x85",
        "\u2028",
        "a\nb",
        "\U000e0001",
        "\ufeff",
        "🎉 # : ' \" \\\\ \t",
        "true",
        "1e5",
    ],
)
def test_any_text_survives_explain(tmp_path, text):
    recipe = load_recipe(
        write(
            tmp_path,
            json.dumps({"base": "quickstart", "about": text}, ensure_ascii=ord(max(text)) < 2**16),
        )
    )
    assert recipe.about == text
    assert load_recipe(write(tmp_path, explain(recipe), "again")).about == text
