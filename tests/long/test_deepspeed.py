"""DeepSpeed as a user starts it: accelerate launch with the shipped configuration."""

import pytest

from tests.helpers import ROOT
from tests.helpers.processes import free_port, run, sets
from tests.helpers.runs import short


def test_through_accelerate_launch(tmp_path):
    """The shipped file, and the refusal of LAMB in one line."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "tools" / "accelerate" / "deepspeed.yaml"),
        "--num_processes=2",
        f"--main_process_port={free_port()}",
    ]
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path)]
    adamw = sets(short(3, "optim.name=adamw", "optim.lr=1e-3"))
    code, out, err = run(*arguments, *adamw, launcher=launcher)
    assert code == 0, err
    assert (
        "machine: 2 processes on cpu, DeepSpeed at ZeRO stage 1" in out
        and out.count("finished: top1") == 1
    )
    code, _, err = run(*arguments, *sets(short(3)), launcher=launcher)
    assert code != 0 and err.count("error: launch: LAMB's trust ratio needs whole tensors") == 1
