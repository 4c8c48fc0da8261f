"""A room imports only rooms below it; few rooms know Torch's engines; no file imports itself round
a circle.
"""

import ast
import graphlib
import importlib
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.helpers import ROOT

PACKAGE = ROOT / "deit_tract"

# What a file of each room may import besides its own room; from the ground up
ROOMS = {
    "common": "",
    "tract": "",
    "recipe": "common",
    "schedule": "common recipe",
    "data": "common recipe",
    "models": "common recipe tract",
    "optim": "common recipe tract",
    "tasks": "common recipe tract schedule data models",
    "evaluators": "common recipe data models",
    "plan": "common recipe tract schedule data models optim",
    "engine": "common recipe tract models optim",
    "train": "common recipe tract schedule data models optim tasks evaluators plan engine",
    "results": "common recipe schedule data models tasks evaluators train",
    "cli": "common recipe tract schedule data models optim tasks evaluators plan engine train"
    " results",
}
# What a folder in a room may import of the same room besides itself
FOLDERS = {
    "data.sets": "",
    "data.transforms": "data.sets",
    "recipe.settings": "recipe.datasets recipe.optimizers",
    "results.sweep": "results.plot results.runs results.statistics",
}
# Who may import a library; all others may not, not even inside a function
KNOWN_BY = {
    "accelerate": {"engine", "train"},
    "deepspeed": {"engine"},
    "argparse": {"cli", "models"},  # DeiT's checkpoints hold its Namespace
}
# Rooms whose files import no Torch, directly or through another file, when they are imported
WITHOUT_TORCH = ("recipe", "schedule", "cli")


def module_of(path) -> str:
    """`deit_tract.data.sets` for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """`data` for deit_tract.data.sets.voc; empty for the package itself."""
    return ".".join(module.split(".")[1:2])


def imports(module: str, inside_functions: bool = True) -> set[str]:
    """Names of modules that a file imports: files of the project as such, other modules in full."""
    tree = ast.parse(FILES[module].read_text())
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            whole = [f"{base}.{alias.name}" for alias in node.names]
            names |= {name if name in FILES else base for name in whole}
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if inside_functions or not lazy:
            todo += ast.iter_child_nodes(node)
    return names


def imported_with(module: str) -> set[str]:
    """Every module that importing this one imports, through packages and other files as well."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in FILES:
            todo += imports(name, inside_functions=False)
            todo += [name.rpartition(".")[0]]
    return seen


def test_every_file_is_in_a_room():
    rooms = {room_of(module) for module in FILES}
    assert rooms == {"", *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_rooms_below_it(room):
    below = list(ROOMS)[: list(ROOMS).index(room)]
    allowed = ROOMS[room].split()
    assert set(allowed) <= set(below), "the table itself points down"
    for module in FILES:
        if room_of(module) == room:
            used = {room_of(name) for name in imports(module) if name in FILES}
            assert used <= {room, *allowed}, f"{module} imports {used - {room, *allowed}}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_what_is_below_it_in_its_room(folder):
    room = folder.split(".")[0]
    allowed = tuple(f"deit_tract.{name}" for name in (folder, *FOLDERS[folder].split()))
    for module in FILES:
        if module.startswith(f"deit_tract.{folder}"):
            used = {name for name in imports(module) & set(FILES) if room_of(name) == room}
            assert all(name.startswith(allowed) for name in used), f"{module} imports {used}"


@pytest.mark.parametrize("library", KNOWN_BY)
def test_few_rooms_know_a_library(library):
    users = {
        room_of(module)
        for module in FILES
        if library in {name.split(".")[0] for name in imports(module)}
    }
    assert users == KNOWN_BY[library]


def test_no_circle_of_files():
    """An import inside a function counts; a package's __init__ comes after the files it imports."""
    graph = {module: imports(module) & set(FILES) - {module} for module in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_recipes_and_mistakes_do_not_wait_for_torch(room):
    for module in FILES:
        if room_of(module) == room:
            assert "torch" not in {name.split(".")[0] for name in imported_with(module)}, module


def test_listing_recipes_imports_no_torch():
    """As above, asked of Python itself."""
    code = (
        "import sys; import deit_tract.cli, deit_tract.recipe.resolve, deit_tract.schedule;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_tract_needs_torch_and_the_standard_library():
    used = set().union(*(imports(module) for module in FILES if room_of(module) == "tract"))
    others = {name.split(".")[0] for name in used - set(FILES)}
    assert others - set(sys.stdlib_module_names) == {"torch"}


def test_tract_works_in_another_project(tmp_path, monkeypatch):
    """Copied under another name, where there is no deit_tract, it trains a step."""
    shutil.copytree(PACKAGE / "tract", tmp_path / "vendored_tract")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "deit_tract", None)  # importing it would be an error
    tract = importlib.import_module("vendored_tract")
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    tract.apply_to_first_layer(net)
    assert isinstance(net[0], tract.TrActConv2d)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net[0].weight.clone()
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    tract.finish_step(net)
    optimizer.step()
    assert torch.isfinite(net[0].weight).all() and not torch.equal(net[0].weight, before)


def test_the_scripts_are_short():
    for script in ("train.py", "finetune.py"):
        assert len((ROOT / script).read_text().splitlines()) <= 40
