"""Figures of the 36 networks of `cifar_net`, made with the reference's code; two steps of each.

cifar_nets.json has for each its parameters and two logits of 100 in float64, in evaluation mode: of
class 7 for the first of IMAGES, of class 91 for the second. The weights follow from their shapes
(`fill`), so that names and the order of layers do not matter.
"""

import json
import math
from pathlib import Path

import numpy as np
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deit_tract.data.sets.load import load_splits
from deit_tract.engine.replicas import Replicas
from deit_tract.optim.build import build_optimizer
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks import build_task

FIGURES = json.loads(Path(__file__).with_suffix(".json").read_text())
IMAGES = (0.01 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64) ** 1.3).sin()
IMAGES = IMAGES.reshape(2, 3, 32, 32)
SMALL = [name for name, figures in FIGURES.items() if figures[0] < 15e6]
LARGE = [name for name in FIGURES if name not in SMALL]
SETTINGS = ("data.name=synthetic", "batch.size=2")


def uniform(count: int) -> Tensor:
    """Numbers in [0, 1) that follow from their count, the same on every machine."""
    place = np.arange(count, dtype=np.uint32)  # whose products wrap at 2^32
    hashed = place * np.uint32(2654435761) + np.uint32((count * 40503 + 12345) % 2**32)
    return torch.from_numpy(hashed * np.uint32(1664525) / 2**32)


@torch.no_grad()
def fill(net: nn.Module) -> None:
    """Give a network without numbers weights of the size that He's initialisation has."""
    net.double().to_empty(device="cpu").eval()
    for name, values in net.state_dict().items():
        if not values.is_floating_point():
            continue
        drawn = uniform(values.numel()).reshape(values.shape)
        if name.endswith(("running_mean", "bias")):
            drawn = 0.2 * (drawn - 0.5)
        elif name.endswith("running_var"):
            drawn += 0.5
        elif values.ndim == 1:
            drawn = 0.75 + 0.5 * drawn
        else:
            drawn = (drawn - 0.5) * math.sqrt(24 * len(values) / values.numel())
        values.copy_(drawn)


def two_steps(name: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of two steps of a recipe's task and engine, at rates 0 and 0.1."""
    recipe = load_recipe(name, SETTINGS)
    task = build_task(recipe, load_splits(recipe.data).train)
    optimizer = build_optimizer(recipe.optim, task.model)
    engine = Replicas(Accelerator(cpu=True), recipe, task.model, optimizer)
    engine.model.train()
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step, rate in enumerate((0.0, 0.1)):
        images = torch.randn(2, 3, 32, 32, generator=generator)
        batch = {"image": images, "label": torch.tensor([step, 2])}
        with engine.lane(last=True):
            engine.backward(task.loss(engine.model, [batch], [step])["loss"])
        losses.append(float(engine.step(rate)[0]))
    return losses, task.model.state_dict()


def check_two_steps(name: str) -> None:
    """With and without TrAct only the first layer's weight differs after a step at rate 0, whose
    gradients are equal but TrAct's, and one at rate 0.1.
    """
    losses, weights = two_steps(f"table1_{name}_200ep")
    their_losses, their_weights = two_steps(f"table1_{name}_200ep_tract")
    assert losses == their_losses and torch.tensor(losses).isfinite().all()
    different = [key for key in weights if not torch.equal(weights[key], their_weights[key])]
    assert different == ["features.0.0.weight"]
    assert their_weights["features.0.0.weight"].isfinite().all()


def logits(name: str) -> list[float]:
    """The two logits of a network of ours."""
    with torch.device("meta"):
        net = timm.create_model("cifar_net", net=name, num_classes=100)
    fill(net)
    with torch.no_grad():
        found = net(IMAGES)
    return [found[0, 7].item(), found[1, 91].item()]
