"""DeepSpeed's ZeRO stages against the same run without DeepSpeed, in two real processes, without transformers."""

import subprocess
import sys

import pytest
from conftest import ROOT, environment, finish, free_port, losses, run, sets, short
from safetensors.torch import load_file

from deit_tract.common.errors import UserError
from deit_tract.engine.deepspeed import deepspeed_plugin, lanes_each, metadata, zero_stage
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import log


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all the runs of dist/zero_runs.py."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
         str(ROOT / "tests" / "dist" / "zero_runs.py"), str(folder)],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    code, out, _ = finish(process, 900)
    assert code == 0, out[-3000:]
    return folder


def weights(folder, step, name="model"):
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{name}.safetensors")


def apart(a, b, step, name="model") -> float:
    a, b = weights(a, step, name), weights(b, step, name)
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.mark.slow
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
    """To 5e-6 over 100 steps, AdamW's clipping at 0.5 included; weights, too, and float32."""
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["adamw, from stage 0 to 1", "adamw, from stage 1 to None", "adamw, from stage 2 to 3", "adamw, from stage 3 to 2",
     "adamw, from stage 3 to 3", "sgd, from stage 2 to 1"],
)  # fmt: skip
def test_a_checkpoint_goes_on_at_another_stage(runs, name):
    whole = runs / f"{name.split(',')[0]}, 20 steps"
    ours = log.read_metrics(runs / name)
    assert losses(ours) == pytest.approx(losses(log.read_metrics(whole)), rel=0, abs=5e-6)
    assert apart(runs / name, whole, 20) < 1e-5


@pytest.mark.parametrize(
    "overrides, error",
    [
        (
            (),
            "LAMB's trust ratio needs whole tensors, which ZeRO stage 2 cuts up; use --zero_stage 0",
        ),
        (
            ("optim.name=adamw", "model.tract_gram=batch"),
            "model.tract_gram: the batch's Gram matrix needs the whole",
        ),
        (
            ("optim.name=adamw", "batch.exact=true"),
            "batch.exact: DeepSpeed sums gradients in its own order",
        ),
        (
            ("optim.name=adam", "optim.first_layer.lr=0.1"),
            "optim.first_layer: DeepSpeed takes one optimizer",
        ),
        (("optim.name=adamw", "precision.autocast=fp16"), "fp16 under DeepSpeed is not supported"),
    ],
)
def test_what_zero_cannot_do_exactly_is_refused(overrides, error):
    with pytest.raises(UserError, match=error):
        deepspeed_plugin(load_recipe("quickstart", overrides), 2)


@pytest.mark.parametrize(
    "variables, error",
    [
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "mine.json"}, "the recipe decides what stands in it"),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            "offloading of optimizer is not supported",
        ),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, "ZeRO stage 4; choose 0, 1, 2 or 3"),
    ],
)
def test_launchers_choices_that_are_not_ours_are_refused(monkeypatch, variables, error):
    for name, value in (variables | {"ACCELERATE_USE_DEEPSPEED": "true"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=error):
        zero_stage()


@pytest.mark.parametrize("version", ["0.18.2", "0.17"])
def test_a_deepspeed_with_wrong_gradients_is_refused(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(
        UserError,
        match=f"DeepSpeed {version} is too old: 0.18 has wrong gradients at stage 2; install 0.19",
    ):
        deepspeed_plugin(load_recipe("quickstart", ("optim.name=adamw",)), 2)


def test_uneven_shares_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        UserError,
        match="4 lanes do not divide over 3 processes, as DeepSpeed needs; start 1, 2 or 4",
    ):
        lanes_each(load_recipe("quickstart"))


def test_every_setting_that_deepspeed_or_accelerate_would_choose_is_written():
    plugin = deepspeed_plugin(
        load_recipe("quickstart", ("optim.name=adamw", "optim.clip_grad=null")), 1
    )
    config = plugin.deepspeed_config
    assert config["gradient_clipping"] == 0.0 and config["zero_optimization"]["stage"] == 1
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (
        16,
        4,
    )
    assert "auto" not in str(config)


@pytest.mark.slow
def test_through_accelerate_launch(tmp_path):
    """The shipped file, and the refusal of LAMB in one line."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launcher = [
        "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "tools" / "accelerate" / "deepspeed.yaml"),
        "--num_processes=2", f"--main_process_port={free_port()}",
    ]  # fmt: skip
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path)]
    adamw = sets(short(3, "optim.name=adamw", "optim.lr=1e-3"))
    code, out, err = run(*arguments, *adamw, launcher=launcher)
    assert code == 0, err
    assert "on 2 process(es)" in out and out.count("finished: top1") == 1
    code, _, err = run(*arguments, *sets(short(3)), launcher=launcher)
    assert code != 0 and err.count("error: launch: LAMB's trust ratio needs whole tensors") == 1
