"""The commands: what a mistake prints, and what --list, --explain and --schema show."""

import json

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.cli import call


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "command line: --recipe is missing; give --recipe NAME; --list shows them"),
        (["--recipe"], "command line: argument --recipe: expected one argument; see --help"),
        (
            ["--recip", "x", "--nonsense"],
            "command line: unrecognized arguments: --recip x --nonsense; see --help",
        ),
        (["--recipe", "quickstrt"], "recipe: no recipe 'quickstrt'; did you mean 'quickstart'?"),
        (
            ["--recipe", "quickstart", "--set", "optim.lr=fast"],
            "--set optim.lr=fast: 'optim.lr' must be a valid number, not \"fast\"",
        ),
        (
            ["--recipe", "quickstart", "--set", "batch.lanes=5"],
            "recipes/quickstart.yaml:21: 64 images do not divide into 5 lanes; try 60 or 65",
        ),
        (
            ["--recipe", "folder_vit_ti", "--output", "OUT"],
            "data.dir: data set 'folder' lies on disk; give --data-dir DIR",
        ),
        (
            ["--recipe", "folder_vit_ti", "--output", "OUT", "--data-dir", "/nowhere"],
            "/nowhere: no such folder; give --data-dir DIR with train/ and val/ inside",
        ),
        (
            ["--recipe", "quickstart", "--output", "OUT", "--set", "data.classes=7"],
            "data.classes: 7, but the data has 10; set data.classes=10",
        ),
        (
            ["--recipe", "quickstart", "--output", "OUT", "--set", "batch.size=4096"],
            "batch.size: 1437 images give a lane 320 of the 1024 views of one step; "
            "use at most 1280",
        ),
        (
            ["--recipe", "quickstart", "--output", "OUT", "--set", "precision.autocast=fp16"],
            "precision.autocast: fp16 needs a CUDA GPU; use bf16, or null for float32",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, error):
    arguments = [str(tmp_path / "run") if word == "OUT" else word for word in arguments]
    code, _, lines = call(capsys, monkeypatch, *arguments)
    assert (code, lines[-1:]) == (2, [f"error: {error}"])
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_output_folder_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "run"
    code, _, lines = call(capsys, monkeypatch, "--recipe", "quickstart", "--output", str(target))
    assert code == 2 and lines[-1].startswith(f"error: {target}: cannot be written (")
    assert lines[-1].endswith("; choose another --output")


def test_a_fine_tuning_recipe_is_not_for_train_py(capsys, monkeypatch, tmp_path):
    arguments = [
        "--recipe",
        "vit_s_ft224",
        "--output",
        str(tmp_path / "run"),
        "--set",
        "data.name=synthetic",
    ]
    code, _, lines = call(capsys, monkeypatch, *arguments)
    assert code == 2
    assert (
        lines[-1]
        == "error: recipe: vit_s_ft224 starts from given weights; use finetune.py --checkpoint ..."
    )


def test_fine_tuning_needs_weights(capsys, monkeypatch, tmp_path):
    base = ["--recipe", "quickstart", "--output", str(tmp_path / "run")]
    assert call(capsys, monkeypatch, *base, finetune=True)[2][-1] == (
        "error: command line: --checkpoint is missing; give the weights to fine-tune; "
        "else use train.py"
    )
    code, _, lines = call(
        capsys, monkeypatch, *base, "--checkpoint", str(tmp_path / "no.pth"), finetune=True
    )
    assert code == 2 and "no.pth: no such file or folder; give a run's folder" in lines[-1]


def test_list_explain_and_schema(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "--list")
    assert code == 0 and any(
        line.startswith("quickstart ") and "98.8 %" in line for line in out.splitlines()
    )
    code, out, _ = call(
        capsys, monkeypatch, "--recipe", "quickstart", "--set", "seed=5", "--explain"
    )
    assert code == 0 and yaml.safe_load(out)["seed"] == 5 and "# --set seed=5" in out
    code, out, _ = call(capsys, monkeypatch, "--schema")
    assert code == 0 and json.loads(out)["title"] == "Recipe"


def test_readme_commands_and_files_exist():
    text = (ROOT / "README.md").read_text()
    for name in (
        "train.py",
        "finetune.py",
        "tools/compare.py",
        "requirements.txt",
        "requirements-dev.txt",
    ):
        assert name in text and (ROOT / name).exists()
