"""README and docs name files, keys and recipes that exist."""

import re

import pytest

from deit_tract.recipe import Recipe, load_recipe, names
from deit_tract.recipe.catalogue import read_folder
from deit_tract.recipe.settings.base import fields
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = {".".join(path) for path, _ in fields(Recipe)}
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request):
    return request.param


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def test_files_exist(page):
    folders = "deit_tract|tests|tools|recipes|docs"
    for path in re.findall(rf"(?<![\w./-])(?:{folders})/[\w/.-]*\w", page.read_text()):
        if not path.endswith("/ROOM"):
            assert (ROOT / path).exists(), path


def test_keys_exist(page):
    sections = "|".join(sorted(SECTIONS))
    for key in re.findall(rf"[`= ]((?:{sections})\.[a-z]\w*)\b(?![./(])", page.read_text()):
        if not key.endswith((".py", ".safetensors")):
            assert key in KEYS or any(known.startswith(f"{key}.") for known in KEYS), key


def test_recipes_exist(page):
    known = names()
    for name in re.findall(r"--recipe (\w+)(?![\w$|{])", page.read_text()):
        assert name in known or name in ("NAME", "FILE"), name


def test_the_readme_quotes_its_recipe():
    (quoted,) = re.findall(r"```yaml\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert quoted == (ROOT / "recipes/quickstart_baseline.yaml").read_text()


def test_the_examples_of_recipes_load(tmp_path):
    blocks = re.findall(r"```yaml\n(.+?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"example{number}.yaml").write_text(block)
    entries = read_folder(tmp_path)
    assert len(entries) == 1 + 8
    for name, entry in entries.items():
        load_recipe(f"{entry.path}:{name}" if entry.family else str(entry.path))


def test_the_readme_has_the_two_commands_of_continuous_integration():
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv .venv")]
    assert ["--recipe quickstart" in line for line in commands] == [True, False]
