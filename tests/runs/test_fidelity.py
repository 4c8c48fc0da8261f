"""DeiT-III's files and fine-tuning, in models of full size."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

from deit_tract.models.build import build_model
from deit_tract.models.weights import load_weights
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.runs import losses, short, train


def deit3_file(model: torch.nn.Module, path, **more) -> None:
    """Weights as facebookresearch/deit publishes them: key "model", gamma_1 and gamma_2 for
    LayerScale.
    """
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = value
    torch.save({"model": state, **more}, path)


@pytest.mark.parametrize("name", ["vit_s_ft224", "vit_b_ft224"])
def test_a_deit3_file_and_a_timm_file_give_equal_logits(tmp_path, name):
    recipe = load_recipe(name)
    source = timm.create_model(recipe.model.name, init_values=1e-4)
    for p in source.parameters():
        torch.nn.init.normal_(p, std=0.02)
    deit3_file(source, tmp_path / "deit3.pth", args=argparse.Namespace(lr=1), epoch=3)
    save_file(source.state_dict(), tmp_path / "timm.safetensors")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = source.eval()(images)
        for file in ("deit3.pth", "timm.safetensors"):
            model = build_model(recipe).eval()
            load_weights(model, str(tmp_path / file))
            assert torch.equal(model(images), expected)


def test_drop_path_is_active_in_fine_tuning(tmp_path):
    """DeiT's first public fine-tuning ran in evaluation mode, without drop path."""
    base = [
        "data.name=synthetic",
        "data.workers=0",
        "batch.size=4",
        "batch.lanes=2",
        "model.args.depth=1",
        "schedule.update=step",
        "schedule.warmup_lr=1e-5",
    ]
    values = [
        losses(
            train(
                tmp_path / str(rate),
                *short(1, *base, f"model.drop_path={rate}"),
                recipe="vit_s_ft224",
            )
        )
        for rate in (0.0, 0.9)
    ]
    assert values[0] != values[1]
