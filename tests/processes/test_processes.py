"""One trajectory whatever the number of processes, in real processes over gloo."""

import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from deit_tract.train import log
from tests.helpers import ROOT
from tests.helpers.processes import command, finish, free_port, kill, run, sets, worlds
from tests.helpers.runs import losses, short

OVERRIDES = short(40, "evaluate.every_steps=20", "save.every_steps=20")
EIGHT = short(10, "batch.lanes=8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders 1 to 4 with four lanes, `1 of 8` and `8 of 8` with eight; and all that was said."""
    folder = tmp_path_factory.mktemp("worlds")
    jobs = [(str(processes), processes, OVERRIDES) for processes in (1, 2, 3, 4)]
    return folder, worlds(folder, [*jobs, ("1 of 8", 1, EIGHT), ("8 of 8", 8, EIGHT)])


@pytest.fixture
def alone(runs):
    return runs[0] / "1", log.read_metrics(runs[0] / "1")


@pytest.mark.parametrize("name, one", [("2", "1"), ("3", "1"), ("4", "1"), ("8 of 8", "1 of 8")])
def test_losses_and_accuracies_are_those_of_one_process(runs, name, one):
    folder, said = runs
    records, expected = log.read_metrics(folder / name), log.read_metrics(folder / one)
    assert said.count(f"machine: {name[0]} processes") == 1, "only process 0 speaks"
    assert len(losses(records)) == (10 if "8" in name else 40)
    assert losses(records) == pytest.approx(losses(expected), rel=0, abs=5e-6)
    for ours, theirs in zip(records, expected, strict=True):
        assert ours.get("top1") == theirs.get("top1") and ours.get("top5") == theirs.get("top5")
        assert ours.get("grad_norm", 0) == pytest.approx(theirs.get("grad_norm", 0), rel=1e-3)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, alone):
    folder, expected = alone
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path), *sets(OVERRIDES)]
    process = command(*arguments, processes=2)
    while not (tmp_path / "checkpoints" / "step_00000020").exists():
        assert process.poll() is None, finish(process)
    kill(process)
    finish(process)
    code, out, err = run(*arguments)
    assert code == 0 and "from step 20" in out, err
    assert losses(log.read_metrics(tmp_path)) == pytest.approx(losses(expected), rel=0, abs=5e-6)
    final = [
        load_file(path / "checkpoints/step_00000040/model.safetensors")
        for path in (folder, tmp_path)
    ]
    for name, value in final[0].items():
        assert (value - final[1][name]).abs().max() < 1e-4


def test_more_processes_than_lanes(tmp_path):
    overrides = short(2, "batch.lanes=2")
    code, _, err = run(
        "--recipe", "quickstart", "--output", str(tmp_path), *sets(overrides), processes=3
    )
    assert code != 0 and err.count("3 processes for batch.lanes 2; start at most 2") == 1


def test_a_mistake_in_the_recipe_is_said_once(tmp_path):
    code, _, err = run("--recipe", "quickstrt", processes=2)
    assert code != 0 and err.count("error: recipe: no recipe 'quickstrt'") == 1


def accelerate(*options: str) -> tuple[int, str, str]:
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_machines=1",
        "--mixed_precision=no",
    ]
    process = subprocess.Popen(
        [*words, "--dynamo_backend=no", *options], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return finish(process)


def test_accelerate_launch_with_one_and_two_processes(tmp_path):
    two = ["--multi_gpu", "--num_processes=2", f"--main_process_port={free_port()}"]
    for name, launcher in (("one", ["--num_processes=1"]), ("two", two)):
        script = [
            "train.py",
            "--recipe",
            "quickstart",
            "--output",
            str(tmp_path / name),
            *sets(short(5)),
        ]
        code, out, err = accelerate(*launcher, *script)
        assert code == 0, err
        assert ("machine: 2 processes" in out) == (name == "two")
    one, two = (losses(log.read_metrics(tmp_path / name)) for name in ("one", "two"))
    assert len(one) == 5 and one == pytest.approx(two, rel=0, abs=5e-6)


def test_a_launcher_that_starts_one_process_of_two_is_refused(tmp_path):
    code, _, err = accelerate(
        "--cpu",
        "--num_processes=2",
        "train.py",
        "--recipe",
        "quickstart",
        "--output",
        str(tmp_path),
    )
    assert (
        code != 0
        and "error: launch: accelerate launch was asked for several processes and started one"
        in err
    )
