"""tools/submit.py: time limits, mistakes, and what it hands to sbatch."""

import os
import sys

import pytest

from tests.helpers import ROOT
from tests.helpers.processes import sets
from tests.helpers.submit import (
    call,
    printed,  # noqa: F401 - a fixture
    submit,
)
from tests.processes.programs import fake_slurm


@pytest.mark.parametrize(
    ("time_limit", "expected"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("2:00:00", 120),
        ("1-0", 1440),
        ("1-2:30", 1590),
        ("0-0:5:30", 5.5),
        ("INFINITE", None),
        (None, None),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(time_limit, expected):
    assert submit.minutes(time_limit) == expected


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "command line: the following arguments are required: --recipe, --nodes; see --help"),
        (
            ["--recipe", "quickstrt", "--nodes", "1"],
            "recipe: no recipe 'quickstrt'; did you mean 'quickstart'?",
        ),
        (
            ["--recipe", "quickstart", "--nodes", "0"],
            "--nodes: '0' is not a whole number from 1 to 65,536",
        ),
        (
            ["--recipe", "quickstart", "--nodes", "1", "--set", "optim.lrr=1"],
            "--set optim.lrr=1: no such key 'optim.lrr'; did you mean 'lr'?",
        ),
        (
            ["--recipe", "quickstart", "--nodes", "2"],
            "launch: 16 processes for batch.lanes 4; start at most 4 (1, 2, 4: equal shares), or "
            "change the experiment: --set batch.lanes=16 (lanes of 4 images) or "
            "--set batch.lanes=16 --set batch.size=256 (a larger batch)",
        ),
        (
            ["--recipe", "vit_s_ft224", "--nodes", "1"],
            "recipe: vit_s_ft224 starts from given weights; "
            "add --finetune --checkpoint RUN|FILE|timm:NAME",
        ),
        (
            ["--recipe", "vit_s_ft224", "--nodes", "1", "--finetune"],
            "command line: --finetune and --checkpoint go together; give both or neither",
        ),
        (
            ["--recipe", "vit_s_800ep", "--nodes", "1", "--array", "0-2x"],
            "--array: '0-2x' is not a list of seeds; write it as 0-4 or 0,1,2",
        ),
        (
            ["--recipe", "vit_s_800ep", "--nodes", "1", "--array", "3-1"],
            "--array: '3-1' has no seed; write it as 0-4 or 0,1,2",
        ),
        (
            ["--recipe", "vit_s_800ep", "--nodes", "1", "--array", "0-9999999999"],
            "--array: '0-9999999999' is too much; give at most 10,000 seeds, none above 4,000,000",
        ),
        (
            ["--recipe", "vit_s_800ep", "--nodes", "1", "--array", "0", "--set", "seed=1"],
            "--set seed: --array sets the seeds; leave one of them out",
        ),
        (
            ["--recipe", "vit_s_800ep", "--nodes", "1", "--time", "4"],
            "--time: 4 leaves no time before the warning, 180 s ahead of it; "
            "give a longer time or a shorter --grace",
        ),
        (
            ["--recipe", "vit_s_800ep", "--nodes", "1", "--account", "a\nb"],
            "--account: 'a\\nb' cannot be part of a batch script; choose a plain name",
        ),
        (
            [
                "--recipe",
                "vit_s_800ep",
                "--nodes",
                "1",
                "--config-file",
                str(ROOT / "tools/accelerate/gpu1.yaml"),
            ],
            f"{ROOT}/tools/accelerate/gpu1.yaml: is for one process, not for 8; "
            "use tools/accelerate/nodes.yaml",
        ),
        (
            [
                "--recipe",
                "vit_s_800ep",
                "--nodes",
                "1",
                "--config-file",
                str(ROOT / "recipes/quickstart.yaml"),
            ],
            f"{ROOT}/recipes/quickstart.yaml: "
            "is not an Accelerate config: no distributed_type; "
            "see tools/accelerate/",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_submitted(
    tmp_path, capsys, monkeypatch, arguments, error
):
    monkeypatch.chdir(tmp_path)
    bin = fake_slurm.install(tmp_path)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(bin))
    assert call(capsys, monkeypatch, *arguments) == (2, "", [f"error: {error}"])
    assert fake_slurm.told(tmp_path, "sbatch") == [] and not (tmp_path / "runs").exists()


def test_deepspeed_needs_even_shares_whole_tensors_and_no_ssh(
    tmp_path, printed, capsys, monkeypatch
):
    few = ("--nodes", "2", "--config-file", str(ROOT / "tools" / "accelerate" / "deepspeed.yaml"))
    text = printed(*few, "--gpus-per-node", "2", "--set", "optim.name=adamw")
    assert "--deepspeed_multinode_launcher standard" in text
    for overrides, error in (
        (
            ["optim.name=adamw", "batch.size=60", "batch.lanes=5"],
            "5 lanes do not divide over 2 processes, as DeepSpeed needs",
        ),
        (["seed=1"], "LAMB's trust ratio needs whole tensors, which ZeRO stage 1 cuts up"),
    ):
        arguments = ["--recipe", "quickstart", *few, "--gpus-per-node", "1", *sets(overrides)]
        code, _, err = call(capsys, monkeypatch, *arguments)
        assert code == 2 and len(err) == 1 and error in err[0]


def test_submitting(tmp_path, capsys, monkeypatch, printed):
    arguments = [
        "--recipe",
        "quickstart",
        "--nodes",
        "1",
        "--gpus-per-node",
        "4",
        "--output",
        str(tmp_path / "run"),
    ]
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert call(capsys, monkeypatch, *arguments)[2] == [
        "error: sbatch: not found: this machine is not part of a SLURM cluster; "
        "--print shows the script"
    ]
    bin = fake_slurm.install(tmp_path)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_SLURM", str(bin))
    assert call(capsys, monkeypatch, *arguments) == (0, "Submitted batch job 71\n", [])
    path = tmp_path / "run" / "job.sbatch"
    assert fake_slurm.told(tmp_path, "sbatch") == [[str(path)]]
    assert path.read_text() == printed(*arguments[2:])
    monkeypatch.setenv(
        "FAKE_SBATCH_ERROR", "sbatch: error: invalid partition\nsbatch: error: Batch job failed"
    )
    code, _, err = call(capsys, monkeypatch, *arguments)
    assert code == 2 and err == [
        "error: sbatch: sbatch: error: invalid partition sbatch: error: Batch job failed; "
        f"see {path}"
    ]
