"""DeepSpeed's ZeRO stages against the same run without DeepSpeed, in two real processes, without
transformers.
"""

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from deit_tract.train import log
from tests.helpers import ROOT
from tests.helpers.processes import environment, finish, free_port
from tests.helpers.runs import losses


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all the runs of programs/zero_runs.py."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            f"--master_port={free_port()}",
            str(ROOT / "tests" / "processes" / "programs" / "zero_runs.py"),
            str(folder),
        ],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    code, out, _ = finish(process, 900)
    assert code == 0, out[-3000:]
    return folder


def weights(folder, step, name="model"):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def apart(a, b, step, name="model") -> float:
    a, b = weights(a, step, name), weights(b, step, name)
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.mark.parametrize(
    "name, plain",
    [
        ("lamb, stage 0", "lamb, plain"),
        ("lamb, batch Gram, stage 0", "lamb, batch Gram, plain"),
        *((f"adamw, stage {stage}", "adamw, plain") for stage in (1, 2, 3)),
        *((f"bf16, stage {stage}", "bf16, stage None") for stage in range(4)),
    ],
)
def test_losses_are_those_without_deepspeed(runs, name, plain):
    """To 5e-6 over 40 steps, AdamW's clipping at 0.5 included; weights, too, and float32."""
    ours, expected = (log.read_metrics(runs / folder) for folder in (name, plain))
    assert losses(ours) == pytest.approx(losses(expected), rel=0, abs=5e-6)
    norms = [
        [record["grad_norm"] for record in records if "grad_norm" in record]
        for records in (ours, expected)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    step = ours[-1]["step"]
    assert apart(runs / name, runs / plain, step) < 1e-4
    assert {str(value.dtype) for value in weights(runs / name, step).values()} == {"torch.float32"}
    if "adamw" in name:
        assert apart(runs / name, runs / plain, step, "ema") < 1e-4
        assert ours[-1]["ema_top1"] == expected[-1]["ema_top1"]


@pytest.mark.parametrize(
    "name",
    [
        "adamw, from stage 0 to 1",
        "adamw, from stage 1 to None",
        "adamw, from stage 2 to 3",
        "adamw, from stage 3 to 2",
        "adamw, from stage 3 to 3",
        "sgd, from stage 2 to 1",
    ],
)
def test_a_checkpoint_goes_on_at_another_stage(runs, name):
    whole = runs / f"{name.split(',')[0]}, 20 steps"
    ours = log.read_metrics(runs / name)
    assert losses(ours) == pytest.approx(losses(log.read_metrics(whole)), rel=0, abs=5e-6)
    assert apart(runs / name, whole, 20) < 1e-5
