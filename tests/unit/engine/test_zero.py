"""DeepSpeed's ZeRO stages against the same run without DeepSpeed, in two real processes, without
transformers.
"""

import pytest

from deit_tract.common.errors import UserError
from deit_tract.engine.deepspeed import deepspeed_plugin, lanes_each, metadata, zero_stage
from deit_tract.recipe.resolve import load_recipe


@pytest.mark.parametrize(
    "overrides, error",
    [
        (
            (),
            "LAMB's trust ratio needs whole tensors, which ZeRO stage 2 cuts up; "
            "use --zero_stage 0",
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
