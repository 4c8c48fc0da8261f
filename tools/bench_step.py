"""`bench.py step`: a whole training step against how DeiT's and timm's scripts take it, lanes that share a forward pass
or do not, and drop path on a subset.

D: as DeiT's engine.py: explicit attention, LAMB one parameter after the other, the loss read and the device waited for.
T: as timm's train.py: fused attention, LAMB on lists. Tc: T compiled. U: TrAct by the published package, torch_tract.
These are statements of our own on timm and torch; all have bf16 autocast, mixup or cutmix, BCE and drop path.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.layers import DropPath as TimmDropPath
from timm.optim import Lamb, param_groups_weight_decay
from torch import nn

from deit_tract.engine.launch import launch, prepare
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.plan import cost
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks.classify import Classify
from tools.bench import compare, interleaved, markdown, peak_bytes, ratio_text, rounds_of, version
from tools.bench_optimizer import mode as lamb_mode

STEPS = {  # recipe, pixels, images
    "cpu": {"ViT-S@224, b8": ("vit_s_800ep_tract", 224, 8)},
    "cuda": {
        "ViT-S@224, b256": ("vit_s_800ep_tract", 224, 256),
        "ViT-S@224, b64": ("vit_s_800ep_tract", 224, 64),
        "ViT-B@192, b256": ("vit_b_800ep_tract", 192, 256),
    },
}
LANES = {
    "cpu": ("ViT-S@224, 4 lanes of 2", 2),
    "cuda": ("ViT-S@224, 4 lanes of 64", 64),
}  # images a lane
SUBSET = "3 ViT-B blocks@192, drop path 0.2"
COLUMNS = ["case", "variant", "ms", "time / first", "images/s", "MFU"]


class InFloat32(nn.Module):
    """torch_tract's layer, whose backward pass fails under autocast."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def theirs(
    recipe, device: torch.device, like_deit: bool, upstream: bool, compiled: bool = False
) -> Callable:
    """A step of D or T, as a function of images and labels."""
    settings = recipe.optim
    net = timm.create_model(
        recipe.model.name, img_size=recipe.data.image_size, **recipe.model.args
    ).train()
    for layer in net.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = not like_deit
        for name in ("drop_path1", "drop_path2"):
            if hasattr(layer, name):
                setattr(layer, name, TimmDropPath(recipe.model.drop_path))
    if upstream:
        import torch_tract

        net.patch_embed.proj = InFloat32(
            torch_tract.TrAct(net.patch_embed.proj, l=recipe.model.tract)
        )
    net = net.to(device)
    groups = param_groups_weight_decay(
        net, settings.weight_decay, no_weight_decay_list=net.no_weight_decay()
    )
    optimizer = Lamb(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps,
                     max_grad_norm=settings.clip_grad, **lamb_mode(False if like_deit else None))  # fmt: skip
    if compiled:
        net.compile()
    mixup = Mixup(
        recipe.mix.mixup, recipe.mix.cutmix, label_smoothing=0.0, num_classes=recipe.data.classes
    )

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        images, targets = mixup(images.clone(), labels)  # it mixes in place
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.binary_cross_entropy_with_logits(net(images).float(), targets.gt(0.0).float())
        if like_deit:
            loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if like_deit and device.type == "cuda":
            torch.cuda.synchronize()

    return step


def ours(recipe, folder: Path, several: int = 1, ahead: bool = True) -> Callable:
    """What the training loop calls for the lanes of a step, `several` of them in a forward pass."""
    task, lanes = Classify(recipe), recipe.batch.lanes
    mine = prepare(launch(recipe, folder), recipe, task.bare)
    task.bare.train()
    for layer in task.tract_layers:
        layer.ahead = ahead
    seeds = itertools.count()

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        parts = list(zip(images.chunk(lanes), labels.chunk(lanes), strict=True))
        for first in range(0, lanes, several):
            with mine.lane(first + several == lanes):
                drawn = list(itertools.islice(seeds, several))
                loss = task.together(mine.model, parts[first : first + several], drawn)["loss"]
                mine.backward(loss * several / lanes)
        mine.step(recipe.optim.lr)

    return step


def product(device: torch.device) -> tuple[Callable, float]:
    """A matrix product in bf16 and its FLOPs, against which MFU is measured."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: torch.mm(a, b), 2.0 * size**3


def whole_step(
    case: str, rounds: int, device: torch.device, compiled: bool
) -> tuple[dict, list[list[str]]]:
    torch.compiler.reset()  # else shapes of the case before would make those of this one dynamic
    name, pixels, batch = STEPS[device.type][case]
    shape = [
        f"data.image_size={pixels}",
        f"batch.size={batch}",
        "batch.lanes=1",
        "augment.repeats=1",
    ]
    recipe = load_recipe(name, ["data.name=synthetic", "precision.autocast=bf16", *shape])
    plain = load_recipe(
        name, ["data.name=synthetic", "precision.autocast=bf16", "model.tract=null", *shape]
    )
    quick = load_recipe(
        name, ["data.name=synthetic", "precision.autocast=bf16", "precision.compile=true", *shape]
    )
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    with tempfile.TemporaryDirectory() as folder:
        steps = {"ours": ours(recipe, Path(folder)), "ours, no TrAct": ours(plain, Path(folder))}
        if version("torch_tract"):
            steps |= {
                "D + U": theirs(recipe, device, True, True),
                "T + U": theirs(recipe, device, False, True),
            }
        else:
            print("torch_tract is not installed (requirements-dev.txt): no D + U and no T + U")
        steps["T, no TrAct"] = theirs(recipe, device, False, False)
        if device.type == "cuda":
            steps["D, no TrAct"] = theirs(recipe, device, True, False)
            steps["ours, Gram matrix in the backward pass"] = ours(
                recipe, Path(folder), ahead=False
            )
        if compiled:
            steps["ours, compiled"] = ours(quick, Path(folder))
            steps["Tc, no TrAct"] = theirs(recipe, device, False, False, compiled=True)
        multiply, flops = product(device)
        runs = {label: (lambda step=step: step(images, labels)) for label, step in steps.items()}
        samples = interleaved({**runs, "matrix product": multiply}, rounds, device)
        result = compare(samples, "ours")
        peak = flops / (result["matrix product"]["ms"][1] / 1e3)
        training = cost.measure(recipe, build_model(recipe)).training
        rows = []
        for label in runs:
            rate = 1e3 * batch / result[label]["ms"][1]
            result[label] |= {"images_per_s": rate, "mfu": rate * training / peak}
            if device.type == "cuda":
                result[label]["peak_mib"] = peak_bytes(runs[label], device) / 2**20
            rows.append([case, label, f"{result[label]['ms'][1]:,.0f}", ratio_text(result[label]["ratio"]),
                         f"{rate:,.3g}", f"{result[label]['mfu']:.0%}"])  # fmt: skip
    result["matrix product"]["tflops"] = peak / 1e12
    rows.append(
        [
            case,
            "matrix product",
            f"{result['matrix product']['ms'][1]:,.1f}",
            "",
            f"{peak / 1e12:.3g} TFLOP/s",
            "",
        ]
    )
    return result, rows


def shared_lanes(rounds: int, device: torch.device) -> tuple[dict, list[list[str]]]:
    """A step of four lanes, in one forward pass and one after the other."""
    case, size = LANES[device.type]
    shape = [f"batch.size={4 * size}", "batch.lanes=4", "augment.repeats=1"]
    recipe = load_recipe(
        "vit_s_800ep_tract", ["data.name=synthetic", "precision.autocast=bf16", *shape]
    )
    images = torch.randn(4 * size, 3, 224, 224, device=device)
    labels = torch.randint(1000, (4 * size,), device=device)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "in one forward": ours(recipe, Path(folder), 4),
            "one by one": ours(recipe, Path(folder)),
        }
        runs = {label: (lambda step=step: step(images, labels)) for label, step in steps.items()}
        result = compare(interleaved(runs, rounds, device), "in one forward")
    rows = [[case, label, f"{result[label]['ms'][1]:,.0f}", ratio_text(result[label]["ratio"]),
             f"{4e3 * size / result[label]['ms'][1]:,.3g}", ""] for label in runs]  # fmt: skip
    return result, rows


def subset(rounds: int, device: torch.device) -> tuple[dict, list[list[str]]]:
    """Forward and backward pass of blocks alone, every drop drawn anew."""
    batch, runs = (10 if device.type == "cpu" else 256), {}
    for mode in ("subset", "mask"):
        recipe = load_recipe(
            "vit_b_800ep",
            ["model.args.depth=3", "model.drop_path=0.2", f"model.drop_path_mode={mode}"],
        )
        net = build_model(recipe).to(device).train()
        layers = [layer for layer in net.modules() if isinstance(layer, DropPath)]
        x = torch.randn(batch, 145, 768, device=device, requires_grad=True)

        def step(net=net, layers=layers, x=x):
            draw_drop_path(layers, batch, 0, device)
            with torch.autocast(device.type, torch.bfloat16):
                net.blocks(x).sum().backward()

        runs[mode] = step
    result = compare(interleaved(runs, rounds, device), "subset")
    rows = [[f"{SUBSET}, b{batch}", mode, f"{result[mode]['ms'][1]:,.0f}", ratio_text(result[mode]["ratio"]),
             f"{1e3 * batch / result[mode]['ms'][1]:,.3g}", ""] for mode in runs]  # fmt: skip
    return result, rows


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Whole steps, lanes and drop path."""
    wanted = lambda case: not arguments.only or any(word in case for word in arguments.only)  # noqa: E731
    results, rows, rounds = {}, [], rounds_of(arguments, 7)
    for case in STEPS[device.type]:
        if wanted(case):
            results[case], more = whole_step(
                case, rounds, device, arguments.compile or device.type == "cuda"
            )
            rows += more
    if wanted(LANES[device.type][0]):
        results[LANES[device.type][0]], more = shared_lanes(rounds, device)
        rows += more
    if wanted(SUBSET):
        results[SUBSET], more = subset(rounds, device)
        rows += more
    print(markdown(COLUMNS, rows))
    print(
        "\nRatios: median (quartiles) over rounds. MFU: of the matrix product in this run, without TrAct's own work."
    )
    return results
