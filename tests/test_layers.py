"""Imports point one way: tract, recipe <- models, optim, data <- tasks <- loop and its kin <- cli <- scripts."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "deit_tract"

LAYERS = [
    {"device", "errors", "gram", "lamb", "schema_base", "measures"},
    {"schema_detect", "data.colour"},
    {"schema"},
    {"recipe_source", "running_statistics", "cifar_models", "weight_gradient"},
    {"tract", "published", "recipe_task"},
    {"first_layer"},
    {"recipe"},
    {"data.stream", "data.readers", "data.boxes"},
    {"data.imagenet", "data.official", "data.decode", "data.feed", "data.shapes", "detector"},
    {"data.cifar", "detector_weights"},
    {"data.transfer"},
    {"models", "optim", "data.datasets", "data.augment", "data.mix", "data.resident"},
    {"data.fast"},
    {"data.voc", "tasks.classify", "tasks.voc", "cost", "zero", "data.held_out"},
    {"tasks.detect"},
    {"checkpoint", "engine", "processes", "tasks.predictions"},
    {"evaluate", "folder", "log", "start", "trained", "reports"},
    {"detection_report", "pace"},
    {"loop", "runs", "plan", "export"},
    {"scaling"},
    {"cli"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Everything a file imports, functions' own imports included, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_layer():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    used = {name.removeprefix("deit_tract.") for name in imports(MODULES[module])} & set(LEVEL)
    wrong = {name for name in used if LEVEL[name] >= LEVEL[module]}
    assert not wrong, f"{module} (layer {LEVEL[module]}) imports {wrong}"


def test_tract_and_lamb_import_torch_and_the_standard_library_alone():
    import sys

    names = set().union(*(imports(MODULES[name]) for name in ("tract", "weight_gradient", "gram", "lamb")))
    ours = {name for name in names if name.startswith("deit_tract")}
    assert {name.split(".")[1] for name in ours} == {"gram", "weight_gradient"}
    assert {name.split(".")[0] for name in names - ours} - set(sys.stdlib_module_names) == {"torch"}


def test_only_the_loop_and_its_kin_know_accelerate():
    knowing = {name for name, path in MODULES.items() if any(i.split(".")[0] == "accelerate" for i in imports(path))}
    assert knowing <= {"loop", "evaluate", "log", "engine", "zero", "processes", "folder"}


def test_the_scripts_are_short():
    for script in ("train.py", "finetune.py"):
        assert len((PACKAGE.parent / script).read_text().splitlines()) <= 40
