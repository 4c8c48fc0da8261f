"""What is loaded cannot run code: no plain pickles, no YAML tags, no evaluated text; a file that
tries is refused.
"""

import ast
import pickle

import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.models.weights import load_weights
from deit_tract.recipe.resolve import load_recipe
from tests.helpers import ROOT
from tests.helpers.cli import call
from tests.helpers.safety import FORMS, malicious

FILES = sorted(
    [*ROOT.glob("*.py"), *(ROOT / "deit_tract").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
)

# Calls that run what a file or text says, however they are imported
FORBIDDEN = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "runpy.run_path",
        "importlib.import_module",
    ),
    *(
        "pickle.load",
        "pickle.loads",
        "marshal.load",
        "marshal.loads",
        "shelve.open",
        "joblib.load",
        "dill.load",
    ),
    *(
        "dill.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
        "pandas.read_pickle",
        "torch.jit.load",
        "torch.hub.load",
    ),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
}
LOADERS = {
    "Loader",
    "FullLoader",
    "UnsafeLoader",
    "CLoader",
    "CFullLoader",
    "CUnsafeLoader",
}  # of yaml; not Safe
DANGEROUS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`torch.load` of a call's function, imports and their other names looked through; empty for
    anything else.
    """
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def imported(tree: ast.AST) -> dict[str, str]:
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    return names


def unsafe(source: str) -> list[str]:
    """What a file does that could run code from data, each with its line."""
    tree = ast.parse(source)
    names, found = imported(tree), []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in [
            dotted(base, names) for base in node.bases
        ]:
            own = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            found += [f"{line}: an Unpickler without a find_class of its own"] * (
                "find_class" not in own
            )
        if isinstance(node, ast.Attribute) and dotted(node, names) in {
            f"yaml.{loader}" for loader in LOADERS
        }:
            found.append(f"{line}: {dotted(node, names)}")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in FORBIDDEN or name == "pickle.Unpickler":
            found.append(f"{line}: {name}")
        if name == "torch.load" and (
            keywords.get("weights_only") is not True or "pickle_module" in keywords
        ):
            found.append(f"{line}: torch.load without weights_only=True")
        if name in ("yaml.load", "yaml.load_all", "yaml.compose") and "Loader" not in keywords:
            found.append(f"{line}: {name} without a Loader")
        found += [
            f"{line}: {key}={value}"
            for key, value in DANGEROUS.items()
            if keywords.get(key) is value
        ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_code_from_data(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import os\nos.system('x')",
        "from os import system as s\ns('x')",
        "import pickle as p\np.load(f)",
        "from pickle import loads\nloads(b)",
        "import torch\ntorch.load(f)",
        "import torch as t\nt.load(f, None)",
        "from torch import load\nload(f, weights_only=flag)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import yaml\nyaml.load(f)",
        "import yaml\nyaml.unsafe_load(f)",
        "import yaml\nyaml.load(f, Loader=yaml.FullLoader)",
        "import pickle\nclass U(pickle.Unpickler): pass",
        "import pickle\npickle.Unpickler(f).load()",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "load_dataset('x', trust_remote_code=True)",
    ],
)
def test_the_check_sees_what_it_should(source):
    assert unsafe(source)


def test_the_check_lets_safe_code_pass():
    assert not unsafe(
        "import torch, yaml\ntorch.load(f, weights_only=True)\nyaml.safe_load(f)\nnet.eval()\n"
        "re.compile(p)"
    )
    assert not unsafe(
        "import pickle\nclass U(pickle.Unpickler):\n"
        "    def find_class(self, m, n): raise ValueError\nU(f).load()"
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_payload_works_where_nothing_stops_it(tmp_path, form):
    malicious(tmp_path / "evil.pth", tmp_path / "executed", form)
    if form == "pickle":
        pickle.loads((tmp_path / "evil.pth").read_bytes())
    else:
        torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors", "evil.bin"])
@pytest.mark.parametrize("form", FORMS)
def test_malicious_weights_are_refused_in_one_line(capsys, monkeypatch, tmp_path, name, form):
    malicious(tmp_path / name, tmp_path / "executed", form)
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(torch.nn.Linear(1, 1), str(tmp_path / name))
    if form == "torch":
        arguments = [
            "--recipe",
            "quickstart",
            "--output",
            str(tmp_path / "run"),
            "--checkpoint",
            str(tmp_path / name),
        ]
        code, _, lines = call(capsys, monkeypatch, *arguments, finetune=True)
        assert code == 2 and lines[-1].startswith(
            f"error: {tmp_path / name}: cannot be read as weights ("
        )
        assert len(
            [line for line in lines if line.startswith("error: ")]
        ) == 1 and "Traceback" not in "".join(lines)
    assert not (tmp_path / "executed").exists()


def test_a_shared_recipe_reaches_no_file_but_its_bases(tmp_path):
    evil = tmp_path / "evil.pth"
    malicious(evil, tmp_path / "executed", "torch")
    for key, value in (
        ("checkpoint_path", f'"{evil}"'),
        ("pretrained_cfg", f'{{file: "{evil}"}}'),
        ("pretrained", "true"),
    ):
        with pytest.raises(UserError, match="a recipe loads no weights"):
            load_recipe("quickstart", [f"model.args.{key}={value}"])
    assert not (tmp_path / "executed").exists()
