"""Complete training steps plain, with TrAct and with the authors' module, in turn.

The paper (Section 4.6) gives hours of complete trainings with and without TrAct; its ratio stands
beside the steps'. All three are steps of our training loop and differ in the first layer only. The
authors' module, PyPI's torch_tract, computes in float32, since it fails under autocast.
"""

import argparse
from functools import partial

import torch
from torch import nn

from deit_tract import tract
from deit_tract.common.text import table
from deit_tract.models.precision import resolve_precision
from deit_tract.recipe import published
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from tools.benches import measure, step

CASES = {  # images: those of one GPU of the paper; on a CPU fewer
    "cpu": {
        "cifar10_cnn_8ep_sgd_tract": 128,
        "cifar10_resnet18_sgd_100ep_tract": 32,
        "cifar10_vit_100ep_tract": 32,
        "vit_s_800ep_tract": 4,
        "vit_b_400ep_tract": 2,
    },
    "cuda": {
        "cifar10_cnn_8ep_sgd_tract": 128,
        "cifar10_resnet18_sgd_100ep_tract": 128,
        "cifar10_vit_100ep_tract": 128,
        "vit_s_800ep_tract": 512,
        "vit_b_400ep_tract": 256,
    },
}
COLUMNS = ("recipe, images", "plain, ms", "ours / plain", "torch_tract / plain", "published")


def authors(model: nn.Module, lam: float) -> None:
    """Put the authors' module in the first layer's place."""
    import torch_tract

    name = tract.first_layer_name(model)
    theirs = torch_tract.TrAct(model.get_submodule(name), l=lam)
    model.set_submodule(name, step.InFloat32(theirs))


def steps(name: str, images: int) -> tuple[Recipe, dict[str, step.Step]]:
    """Return the recipe and its three steps, the plain one first."""
    common = ["data.name=synthetic", "data.resident=false", "augment.repeats=1"]
    common += [f"batch.size={images}", "batch.lanes=1"]
    recipe = resolve_precision(load_recipe(name, common))
    plain = resolve_precision(load_recipe(name, [*common, "model.tract=null"]))
    made = {"plain": step.ours(plain), "ours": step.ours(recipe)}
    if measure.version("torch_tract"):
        made["torch_tract"] = step.ours(plain, change=partial(authors, lam=recipe.model.tract))
    return recipe, made


def measure_steps(name: str, images: int, rounds: int, device: torch.device) -> dict:
    recipe, made = steps(name, images)
    shape = (images, recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
    batch = torch.randn(shape, device=device)
    labels = torch.randint(recipe.data.classes, (images,), device=device)
    runs = {label: partial(run, batch, labels) for label, run in made.items()}
    return measure.compare(measure.interleaved(runs, rounds, device))


def published_ratios() -> dict[str, str]:
    """Return with / without TrAct by recipe."""
    found = {}
    for entry in published.read()["run_times"]:
        without, with_tract = entry.get("seconds") or entry["minutes"]
        found[entry["recipe"]] = f"{with_tract / without:.4f}x: {entry['what']}"
    return found


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print every case."""
    rounds = measure.rounds_of(arguments, 9)
    results, rows, known = {}, [], published_ratios()
    for name, images in CASES[device.type].items():
        if not measure.wanted(name, arguments):
            continue
        result = results[name] = measure_steps(name, images, rounds, device)
        ratios = [
            measure.ratio_text(result[label]["ratio"]) if label in result else "not installed"
            for label in ("ours", "torch_tract")
        ]
        plain = f"{result['plain']['ms'][1]:,.1f}"
        rows.append([f"{name}, {images}", plain, *ratios, known.get(name, "")])
    print(table(COLUMNS, rows))
    print(f"\n{measure.RATIOS} Published: complete trainings, with / without TrAct (Section 4.6).")
    return results
