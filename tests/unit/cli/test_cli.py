"""The commands: what a mistake prints, and what --list, --explain and --schema show."""

import importlib
import json
import shlex
from pathlib import Path

import pytest
import yaml

from deit_tract import cli
from deit_tract.recipe import aliases
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.base import fields
from deit_tract.recipe.settings.recipe import Recipe
from tests.helpers import ROOT
from tests.helpers.cli import call


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "command line: --recipe is missing; give --recipe NAME; --list shows them"),
        (["--recipe"], "command line: argument --recipe: expected one argument; see --help"),
        (
            ["--recip", "x", "--nonsense"],
            "command line: unrecognized arguments: --recip x --nonsense; did you mean '--recipe'?",
        ),
        (["--nonsense"], "command line: unrecognized arguments: --nonsense; see --help"),
        (
            ["--lr", "1e-3", "--batch-size=128", "--opt-betas", "0.9", "0.95", "--amp"],
            "command line: unrecognized arguments: --lr 1e-3 --batch-size=128 --opt-betas 0.9 0.95 "
            "--amp; write --set optim.lr=1e-3 --set batch.size=128 --set optim.betas=[0.9,0.95] "
            "--set precision.autocast=auto",
        ),
        (
            ["--data-path", "x", "--resume", "y"],
            "command line: unrecognized arguments: --data-path x --resume y; write --data-dir x; "
            "the same command again resumes a run",
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


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("wd", "optim.weight_decay"),
        ("batch.batch_size", "batch.size"),
        ("epochs", "schedule.epochs"),
        ("optim.mixup", "mix.mixup"),
    ],
)
def test_names_of_other_trainers_lead_to_the_key(capsys, monkeypatch, key, meant):
    code, _, lines = call(capsys, monkeypatch, "--recipe", "quickstart", "--set", f"{key}=1")
    assert (code, lines) == (
        2,
        [f"error: --set {key}=1: no such key '{key}'; did you mean '{meant}'?"],
    )


def test_every_alias_is_a_key_and_every_option_is_there():
    keys = {".".join(path) for path, _ in fields(Recipe)}
    meant = {aliases.key_of(name) for name in aliases.KEYS}
    assert meant - keys == {"model.args.drop_rate"}  # of timm.create_model
    options = {action for action in cli._parser("", True)._option_string_actions}
    assert set(aliases.OPTIONS.values()) <= options


def test_the_next_commands_are_what_the_tools_take(tmp_path):
    """As they are printed, a folder with a space included."""
    recipe = load_recipe("quickstart")
    first, *commands = cli._next_commands(tmp_path / "a run", recipe)
    assert first == f"in {tmp_path}/a run; next:"
    for command in commands:
        python, script, *words = shlex.split(command)
        assert python == "python" and (ROOT / script).is_file()
        tool = importlib.import_module(f"tools.{Path(script).stem}")
        tool.parser().parse_args(words)
    assert len(commands) == 3
