"""The first layer with TrAct against the plain layer and the paper's published package.

On a GPU also complete training steps.
"""

import argparse
import copy
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit_tract import tract
from deit_tract.common.text import table
from tools.benches import measure

LAYERS = {  # layer, shape of its input
    "ViT-S patches, b32@224": (lambda: nn.Conv2d(3, 384, 16, 16), (32, 3, 224, 224)),
    "ViT-B patches, b32@224": (lambda: nn.Conv2d(3, 768, 16, 16), (32, 3, 224, 224)),
    "CIFAR stem 3x3, b128@32": (lambda: nn.Conv2d(3, 64, 3, 1, 1, bias=False), (128, 3, 32, 32)),
    "ResNet stem 7x7/2, b8@224": (lambda: nn.Conv2d(3, 64, 7, 2, 3, bias=False), (8, 3, 224, 224)),
    "VGG conv1_1, b1@600x1000": (lambda: nn.Conv2d(3, 64, 3, 1, 1), (1, 3, 600, 1000)),
    "Linear 3072-384, b1024": (lambda: nn.Linear(3072, 384), (1024, 3072)),
    "Linear 3072-384, b4096": (lambda: nn.Linear(3072, 384), (4096, 3072)),
}
STEPS = {  # model, images
    "ViT-S step, b256@224": ("deit3_small_patch16_224", 256),
    "ViT-B step, b128@224": ("deit3_base_patch16_224", 128),
}
COLUMNS = ["case", "plain, ms", "ours / plain", "ours, MiB over plain", "torch_tract / plain"]
COLUMNS += ["torch_tract, MiB over plain", "extra time, torch_tract / ours"]


def variants(layer: nn.Module) -> dict[str, nn.Module]:
    """Return the layer as it is, as ours, and as the published package if it is installed."""
    made = {"plain": layer, "ours": tract.TrAct(copy.deepcopy(layer))}
    try:
        import torch_tract
    except ImportError:
        return made
    theirs = torch_tract.TrAct(copy.deepcopy(layer))
    return {**made, "torch_tract": theirs.to(layer.weight.device)}


def forward_backward(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], None]:
    def run():
        for parameter in layer.parameters():
            parameter.grad = None
        layer(x).backward(gradient)

    return run


def measure_layer(
    make: Callable[[], nn.Module], shape: tuple, rounds: int, device: torch.device
) -> dict:
    """Measure forward and backward of one layer whose input needs no gradient."""
    layer = make().to(device)
    x = torch.randn(shape, device=device)
    gradient = torch.randn_like(layer(x))
    runs = {name: forward_backward(each, x, gradient) for name, each in variants(layer).items()}
    return measure.compare_with_peaks(runs, rounds, device)


def train_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def run():
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def measure_step(model: str, batch: int, rounds: int, device: torch.device) -> dict:
    """Measure a training step in bfloat16: what the layer costs in its place.

    Without torch_tract, which fails under autocast.
    """
    x = torch.randn(batch, 3, 224, 224, device=device)
    y = torch.randint(1000, (batch,), device=device)
    plain = timm.create_model(model).to(device)
    ours = copy.deepcopy(plain)
    tract.apply_to_first_layer(ours)
    runs = {"plain": train_step(plain, x, y), "ours": train_step(ours, x, y)}
    return measure.compare_with_peaks(runs, rounds, device)


def row(case: str, result: dict) -> list[str]:
    plain, ours, theirs = (result.get(name) for name in ("plain", "ours", "torch_tract"))

    def against_plain(figures: dict) -> list[str]:
        extra = figures["peak_mib"] - plain["peak_mib"]
        return [measure.ratio_text(figures["ratio"]), f"{extra:+.1f}"]

    cells = [case, f"{plain['ms'][1]:.2f}", *against_plain(ours)]
    if theirs is None:
        return [*cells, "-", "-", "-"]
    extra = (theirs["ms"][1] - plain["ms"][1]) / (ours["ms"][1] - plain["ms"][1])
    return [*cells, *against_plain(theirs), f"{extra:.1f}"]


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print every case."""
    results = {}
    rounds = measure.rounds_of(arguments, 11)
    for case, (make, shape) in LAYERS.items():
        if measure.wanted(case, arguments):
            results[case] = measure_layer(make, shape, rounds, device)
    for case, (model, batch) in STEPS.items():
        if measure.wanted(case, arguments) and device.type == "cuda":
            results[case] = measure_step(model, batch, rounds, device)
    print(table(COLUMNS, [row(case, result) for case, result in results.items()]))
    print(f"\n{measure.RATIOS} MiB: peak of the tensors made during forward and backward.")
    return results
