"""Family files: members, values and their origins; every mistake is one line with its place."""

import pytest

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.recipe import catalogue
from deit_tract.recipe.describe import explain, leaves
from deit_tract.recipe.resolve import load_recipe

FAMILY = """\
family: "{size}_{run}{arm}"
about: "a test of {run.about}{arm.about}, {size}"
model: {name: vit_tiny_patch16_224}
data: {name: synthetic, image_size: 32, classes: 4}
batch: {size: 8, lanes: 2}
loss: {name: ce}
schedule: {steps: 10}
options:
  size: [8, 16]
  run:
    sgd: {about: SGD, optim: {name: sgd, lr: 0.1}}
    adam:
      about: Adam
      optim: {name: adam, lr: 1e-3}
      schedule: {epochs: 3}
  arm:
    "": {about: ""}
    _tract: {about: " and TrAct in {run}", model: {tract: 0.1}}
    _late:
      only: {run: adam, size: 8}
      about: " late"
      optim: {lr: 2e-3}
"""
NAMES = ["8_sgd", "8_sgd_tract", "8_adam", "8_adam_tract", "8_adam_late", "16_sgd", "16_sgd_tract"]
NAMES += ["16_adam", "16_adam_tract"]


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "fam") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return str(path)

    return write


def lines_of(name: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(name)
    lines = str(caught.value).splitlines()
    assert not isinstance(caught.value, UserErrors) or len(lines) == len(caught.value.args[0])
    return lines


def test_members_are_the_combinations_that_go_together(write, tmp_path):
    write(FAMILY)
    assert list(catalogue.read_folder(tmp_path)) == sorted(NAMES)


def test_options_are_merged_over_the_common_part_in_the_axes_order(write):
    file = write(FAMILY)
    sgd, late = load_recipe(f"{file}:16_sgd_tract"), load_recipe(f"{file}:8_adam_late")
    assert (sgd.name, sgd.optim.name, sgd.model.tract) == ("16_sgd_tract", "sgd", 0.1)
    assert sgd.about == "a test of SGD and TrAct in sgd, 16"
    assert late.about == "a test of Adam late, 8"
    assert (late.optim.name, late.optim.lr, late.model.tract) == ("adam", 2e-3, None)
    assert (sgd.schedule.steps, sgd.schedule.epochs) == (10, None)
    assert (late.schedule.steps, late.schedule.epochs) == (None, 3)  # displaced, as over a base


def test_a_value_says_its_line_and_option(write):
    recipe = load_recipe(f"{write(FAMILY)}:8_adam_late")
    origins = {".".join(path): origin for path, (_, origin) in leaves(recipe).items()}
    assert origins["optim.lr"].endswith("fam.yaml:22 (arm _late)")
    assert origins["optim.name"].endswith("fam.yaml:14 (run adam)")
    assert origins["batch.size"].endswith("fam.yaml:5")
    shipped = explain(load_recipe("cifar10_resnet18_adam_400ep"))
    assert "lr: 0.001" in shipped and "(run adam_400ep)" in shipped


def test_a_run_stores_a_plain_recipe(write):
    recipe = load_recipe(f"{write(FAMILY)}:8_adam_late")
    again = load_recipe(write(explain(recipe), "again"))
    assert again.model_dump() == recipe.model_dump()


def test_a_member_is_a_base_and_a_family_has_one(write):
    child = load_recipe(write("base: cifar10_vit_200ep_tract\nseed: 3\n", "child"))
    assert (child.model.tract, child.seed, child.schedule.epochs) == (0.1, 3, 200)
    grid = 'family: "x_{seed}"\nbase: "{base}"\nabout: "{seed}"\noptions:\n  seed: [a, b]\n'
    member = load_recipe(write(grid + "  base: [quickstart]\n") + ":x_b")
    assert (member.about, member.data.name) == ("b", "digits")


def test_a_family_file_asks_for_a_member(write):
    file = write(FAMILY)
    [line] = lines_of(file)
    names = ", ".join(f"{file}:{name}" for name in NAMES[:4])
    assert line == f"{file}: holds 9 recipes; name one: {names} ..."
    [line] = lines_of("recipes/cifar/resnet18.yaml")
    assert "resnet18.yaml: holds 36 recipes; name one: cifar10_resnet18_sgd_100ep, " in line
    [line] = lines_of(write("base: fam\n", "child"))
    assert "child.yaml:1: holds 9 recipes; name one: " in line
    [line] = lines_of(f"{file}:8_adm")
    assert line == f"{file}: no recipe '8_adm'; did you mean '{file}:8_adam'?"
    assert "no such recipe file" in lines_of("recipes/quickstart.yaml:x")[0]
    [line] = lines_of("cifar10_resnet18_adm_400ep")
    assert line.endswith("did you mean 'cifar10_resnet18_adam_400ep'?")


def test_a_name_is_unique_over_all_files(write, tmp_path):
    write(FAMILY)
    write("base: quickstart\n", "8_sgd")
    with pytest.raises(UserError, match=r"recipe '8_sgd' is in .*8_sgd.yaml, too; rename one"):
        catalogue.read_folder(tmp_path)


def test_a_broken_family_leaves_the_other_recipes_alone(write, tmp_path, monkeypatch):
    write(FAMILY.replace("{arm}", "{amr}"))
    write("base: quickstart\n", "fine")
    entries = catalogue.read_folder(tmp_path) | {"quickstart": catalogue.find("quickstart")}
    monkeypatch.setattr(catalogue, "names", lambda: entries)
    assert load_recipe("fine").data.name == "digits"
    for name in ("fam", "8_adam"):
        assert "nothing is called '{amr}'; known are size, run, arm" in lines_of(name)[0]


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ('"{size}_{run}{arm}"', "3", 1, "'family' must be the pattern of its members' names"),
        ('"{size}_{run}{arm}"', "[a]", 1, "'family' must be the pattern of its members' names"),
        ('family: "{size}_{run}{arm}"', "", 9, "'family' must be the pattern"),
        ("_{run}", "", 1, "two members are called '8'; the pattern needs each {axis}, and"),
        ("{size}_", "{siz}_", 1, "nothing is called '{siz}'; known are size, run, arm"),
        ("{size}_", "{size.about}_", 1, "nothing is called '{size.about}'"),
        ("{run.about}", "{run.abut}", 2, "nothing is called '{run.abut}'; known are size, run"),
        ("{run.about}", "{}", 2, "nothing is called '{}'"),
        (", {size}", ", {size.about}", 2, "'{size.about}'; known are size, run, arm, run.about"),
        ("about: SGD, ", "", 2, "nothing is called '{run.about}'"),
        (
            "in {run}",
            "in {run.about}",
            18,
            "nothing is called '{run.about}'; known are size, run, arm",
        ),
        ("name: adam", 'name: "{x}"', 14, "nothing is called '{x}'"),
        ("[8, 16]", "[8, 8]", 9, "axis 'size' must be a section or a list"),
        ("[8, 16]", "[]", 9, "axis 'size' must be a section or a list"),
        ("[8, 16]", "[8, null]", 9, "axis 'size' must be a section or a list"),
        ("[8, 16]", "5", 9, "axis 'size' must be a section or a list"),
        ("[8, 16]", "[8, a b]", 1, "'a b_sgd' cannot name a recipe"),
        ("    sgd:", "    s gd:", 1, "'8_s gd' cannot name a recipe"),
        (
            "sgd: {about: SGD, optim: {name: sgd, lr: 0.1}}",
            "sgd: 3",
            11,
            "an option must be a section",
        ),
        ("about: Adam", "about: [1]", 13, "'about' must be text"),
        ("about: Adam", "base: quickstart", 13, "'base' has no place in an option; set it in the"),
        ("about: Adam", "options: {x: [1]}", 13, "'options' has no place in an option"),
        ("run: adam, ", "rum: adam, ", 20, "of axis 'rum', which is not one; did you mean 'run'"),
        ("run: adam, ", "arm: adam, ", 20, "option 'adam' of axis 'arm', which is not one"),
        ("run: adam, ", "run: adm, ", 20, "'adm' of axis 'run', which is not one; did you mean"),
        (
            "run: adam, ",
            "run: {adam: 1}, ",
            20,
            "'only' must read axis: option, or axis: [options]",
        ),
        ("{run: adam, ", "3  # ", 20, "'only' must read axis: option, or axis: [options]"),
        (
            '"": {about: ""}',
            '_tract: {about: ""}',
            18,
            "'options.arm._tract' is already set in line 17",
        ),
        ("[8, 16]", "[8, /]", 1, "'/_sgd' cannot name a recipe"),
        ("lr: 1e-3", "lr: [", 14, "not valid YAML"),
        ("lr: 1e-3", "lr: *a", 14, "aliases are not allowed in a recipe"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(write, old, new, line, what):
    assert old in FAMILY
    found = lines_of(write(FAMILY.replace(old, new)))
    assert any(f"fam.yaml:{line}" in text and what in text for text in found), found
    assert all("fam.yaml:" in text and text.isprintable() for text in found), found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("family: x\n", ":1: a family needs 'options'; give it an axis"),
        ("family: x\noptions: {}\n", ":2: 'options' must be a section of axes"),
        ("family: x\noptions: [a]\n", ":2: 'options' must be a section of axes"),
        ("family: x\noptions: {a: {}}\n", ":2: axis 'a' must be a section or a list"),
        ('family: "{a}{b}"\noptions: {a: [x, xy], b: [yz, z]}\n',
         ":1: two members are called 'xyz'"),
        ("options: {a: [x, y]}\n", ":1: 'family' must be the pattern of its members' names"),
        ('family: "{a}{b}"\noptions:\n  a: {x: {only: {b: y}}, w: {only: {b: z}}}\n'
         "  b: {y: {only: {a: w}}, z: {only: {a: x}}}\n",
         ":1: has no members; 'only' excludes every combination"),
        ('family: "{a}{b}{c}"\noptions:\n' + "".join(f"  {x}: {list(range(20))}\n" for x in "abc"),
         ":1: has 8,000 members, the most are 2,000"),
    ],
)  # fmt: skip
def test_a_family_of_nothing_or_of_too_many(write, text, what):
    [line] = lines_of(write(text))
    assert line.endswith(what) or what in line
