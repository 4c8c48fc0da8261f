"""DeepSpeed's settings."""

from deit_tract.engine.deepspeed import deepspeed_plugin
from deit_tract.recipe.launch import Launch
from deit_tract.recipe.resolve import load_recipe


def test_every_setting_that_deepspeed_or_accelerate_would_choose_is_written():
    recipe = load_recipe("quickstart", ("optim.name=adamw", "optim.clip_grad=null"))
    config = deepspeed_plugin(recipe, Launch(zero_stage=1)).deepspeed_config
    assert config["gradient_clipping"] == 0.0 and config["zero_optimization"]["stage"] == 1
    assert config["train_micro_batch_size_per_gpu"] == 16
    assert config["gradient_accumulation_steps"] == 4
    assert "auto" not in str(config)
