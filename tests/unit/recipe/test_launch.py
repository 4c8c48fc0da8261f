"""What a launch must satisfy: run, --plan, --plan --gpus, submit.py refuse it in the same words."""

import pytest
import torch
import yaml

from deit_tract.common.errors import UserError
from deit_tract.engine.launch import launch
from deit_tract.plan.plan import make_plan
from deit_tract.recipe.launch import (
    Device,
    Launch,
    check_launch,
    launch_problems,
    metadata,
    read_launch,
)
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.submit import submit

EQUAL = "start at most 4 (1, 2, 4: equal shares), or change the experiment: "
# processes, ZeRO stage, overrides of the quickstart (4 lanes, LAMB), where and what is refused
REFUSED = [
    (
        5,
        None,
        [],
        "launch: 5 processes for batch.lanes 4; "
        f"{EQUAL}--set batch.lanes=5 --set batch.size=80 (a larger batch)",
    ),
    (
        8,
        None,
        ["optim.name=adamw"],
        "launch: 8 processes for batch.lanes 4; "
        f"{EQUAL}--set batch.lanes=8 (lanes of 8 images) or "
        "--set batch.lanes=8 --set batch.size=128 (a larger batch)",
    ),
    (
        3,
        0,
        [],
        "launch: 4 lanes do not divide over 3 processes, as DeepSpeed needs; start 1, 2 or 4",
    ),
    (
        2,
        1,
        [],
        "launch: LAMB's trust ratio needs whole tensors, which ZeRO stage 1 cuts up; "
        "use --zero_stage 0, or one of optim.name adamw, adam, sgd",
    ),
    (
        2,
        2,
        ["optim.name=adamw", "model.tract_gram=batch"],
        "model.tract_gram: the batch's Gram matrix needs the complete gradient, "
        "which ZeRO stage 2 cuts up; use lane, or --zero_stage 0",
    ),
    (
        2,
        0,
        ["optim.first_layer.lr=0.1"],
        "optim.first_layer: DeepSpeed takes one optimizer; launch without DeepSpeed",
    ),
    (
        2,
        0,
        ["batch.exact=true"],
        "batch.exact: DeepSpeed sums gradients in its own order; launch without DeepSpeed",
    ),
    (
        2,
        0,
        ["batch.lanes_per_forward=2"],
        "batch.lanes_per_forward: DeepSpeed counts lanes as forward passes; "
        "set it to 1 or auto, or launch with DDP",
    ),
    (
        2,
        0,
        ["precision.compile=true"],
        "precision.compile: not supported under DeepSpeed; set it to false, or launch with DDP",
    ),
    (
        2,
        3,
        ["optim.name=adamw", "precision.autocast=fp16"],
        "precision.autocast: fp16 under DeepSpeed is not supported; use bf16, or launch with DDP",
    ),
    (1, 4, [], "launch: ZeRO stage 4; choose 0, 1, 2 or 3"),
]


def message(function, *arguments) -> list[str]:
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value).splitlines()


def submitted(folder, processes: int, config: dict, recipe) -> None:
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config))
    options = ["--recipe", "quickstart", "--nodes", "1", "--config-file", str(path)]
    options += ["--gpus-per-node", str(processes)]
    submit.check(submit.parser().parse_args(options), recipe)


@pytest.mark.parametrize(("processes", "stage", "overrides", "error"), REFUSED)
def test_a_launch_is_refused_everywhere_alike(
    tmp_path, monkeypatch, processes, stage, overrides, error
):
    recipe = load_recipe("quickstart", overrides)
    config = {"distributed_type": "MULTI_GPU"}
    if stage is not None:
        config = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": stage}}
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    on_gpus = message(make_plan, recipe, tmp_path, processes)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    # the machine's own refusal of fp16 comes before that of the launch
    run = message(launch, recipe)
    assert run[-1:] == on_gpus == [error]
    assert message(make_plan, recipe, tmp_path) == run
    assert message(submitted, tmp_path, processes, config, recipe) == [error]


@pytest.mark.parametrize(
    ("engine", "option", "variable", "error"),
    [
        ("FSDP", {}, {}, "FSDP is not supported"),
        ("MEGATRON_LM", {}, {}, "MEGATRON_LM is not supported"),
        (
            "DEEPSPEED",
            {"deepspeed_config_file": "mine.json"},
            {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "mine.json"},
            "a DeepSpeed config file is given, but the recipe decides what is in it",
        ),
        (
            "DEEPSPEED",
            {"offload_optimizer_device": "cpu"},
            {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            "offloading of optimizer is not supported; set it to none",
        ),
    ],
)
def test_launcher_options_that_no_recipe_can_have(
    tmp_path, monkeypatch, engine, option, variable, error
):
    recipe = load_recipe("quickstart")
    config = {"distributed_type": engine, "deepspeed_config": option}
    for name, value in ({f"ACCELERATE_USE_{engine}": "true"} | variable).items():
        monkeypatch.setenv(name, value)
    run = message(launch, recipe)
    assert len(run) == 1 and run[0].startswith(f"launch: {error}")
    assert message(make_plan, recipe, tmp_path) == message(make_plan, recipe, tmp_path, 2) == run
    assert message(submitted, tmp_path, 2, config, recipe) == run


@pytest.mark.parametrize(
    ("autocast", "device", "error"),
    [
        ("fp16", Device(has_cuda=False), "fp16 needs a CUDA GPU; use bf16, or null for float32"),
        ("bf16", Device(True, False, "Tesla V100"), "Tesla V100 has no bf16; use fp16"),
    ],
)
def test_what_the_device_cannot_do_is_refused_where_it_is_known(
    tmp_path, monkeypatch, autocast, device, error
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device.has_cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: device.has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device.name)
    recipe = load_recipe("quickstart", [f"precision.autocast={autocast}"])
    refused = [f"precision.autocast: {error}"]
    assert message(launch, recipe) == message(make_plan, recipe, tmp_path) == refused
    assert make_plan(recipe, tmp_path, 2), "of GPUs elsewhere nothing is known"
    submitted(tmp_path, 2, {"distributed_type": "MULTI_GPU"}, recipe)


def test_all_problems_at_once():
    recipe = load_recipe("quickstart", ["batch.exact=true", "precision.compile=true"])
    keys = [problem.args[0] for problem in launch_problems(recipe, Launch(8, zero_stage=1))]
    assert keys == ["launch", "launch", "precision.compile", "batch.exact"]


def test_a_network_that_drops_blocks_has_one_process():
    overrides = ["batch.lanes=2", "batch.exact=true"]
    recipe = load_recipe("table1_stochasticdepth18_200ep", overrides)
    problems = [str(problem) for problem in launch_problems(recipe, Launch(2))]
    assert problems == [
        "launch: stochasticdepth18 drops blocks, which 2 processes cannot; start one",
        "batch.exact: stochasticdepth18 drops blocks, whose weights would move; set it to false",
    ]
    assert launch_problems(load_recipe("table1_resnet18_200ep", overrides), Launch(2)) == []


@pytest.mark.parametrize("version", ["0.18.2", "0.17"])
def test_a_deepspeed_with_wrong_gradients_is_refused(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    error = f"DeepSpeed {version} is too old: 0.18 has wrong gradients at stage 2; install 0.19"
    with pytest.raises(UserError, match=error):
        check_launch(load_recipe("quickstart"), Launch(zero_stage=0))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
def test_what_is_possible_passes(name, stage):
    recipe = load_recipe("quickstart", [f"optim.name={name}"])
    if not (stage and OPTIMIZERS[name].whole_tensors):
        check_launch(recipe, Launch(2, stage))
    assert read_launch({}) == Launch()
