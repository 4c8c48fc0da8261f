"""Activation checkpointing: the same losses, gradients and statistics, bit for bit."""

import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks.classify import Classify

VIT = (
    "model.name=test_vit",
    "model.drop_path=0.5",
    "model.tract=0.1",
    "model.args.proj_drop_rate=0.2",
)
SUBSET = (*VIT, "model.drop_path_mode=subset")


class Labelled:
    """All that Classify asks of the images before it reads one."""

    classes, labels = ["a", "b", "c"], [0, 1, 2]


def step(checkpointing: bool, *overrides: str) -> tuple[dict, dict, int]:
    """Two lanes' gradients and the state after them, and how many bytes the forward saved."""
    settings = [f"model.checkpointing={checkpointing}".lower(), "data.image_size=32", *overrides]
    settings += [
        "model.pretrained=false",
        "data.classes=3",
        "data.mean=[0,0,0]",
        "data.std=[1,1,1]",
    ]
    task = Classify(load_recipe("folder_finetune", settings), Labelled())
    generator = torch.Generator().manual_seed(0)
    saved = 0

    def pack(tensor):
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    task.model.train()
    for seed in (1, 2):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        batch = {"image": images, "label": torch.tensor([0, 1, 2, 0])}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = task.loss(task.model, [batch], [seed])["loss"]
        loss.backward()
    gradients = {name: p.grad for name, p in task.model.named_parameters()}
    return gradients, task.model.state_dict(), saved


@pytest.mark.parametrize("model", [VIT, SUBSET, ("model.name=test_resnet",)])
def test_gradients_and_running_statistics_are_bit_equal(model):
    gradients, state, saved = step(False, *model)
    again, state_again, less = step(True, *model)
    assert less < 0.8 * saved
    assert all(torch.equal(gradients[name], again[name]) for name in gradients)
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_a_model_without_it_is_refused():
    settings = load_recipe("quickstart", ["model.name=vgg11", "model.tract=null"])
    settings = settings.model_copy(
        update={
            "model": settings.model.model_copy(
                update={"checkpointing": True, "args": {}, "drop_path": 0.0}
            )
        }
    )
    with (
        pytest.raises(UserError, match="VGG has no activation checkpointing"),
        torch.device("meta"),
    ):
        build_model(settings)
