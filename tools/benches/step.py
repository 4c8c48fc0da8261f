"""A training step against DeiT's and timm's, lanes that share a forward pass or not, drop path.

D: as DeiT's engine.py: explicit attention, LAMB parameter by parameter, reads the loss, waits for
   the device.
T: as timm's train.py: fused attention, LAMB on lists. Tc: T compiled.
U: TrAct by the published package, torch_tract.

D and T are written for this bench on timm and torch; all have bf16 autocast, mixup or cutmix, BCE
and drop path.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial

import timm
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from timm.data import Mixup
from timm.layers import DropPath as TimmDropPath
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from deit_tract.common.text import table
from deit_tract.data.sets.load import load_splits
from deit_tract.engine.engine import Engine
from deit_tract.engine.launch import launch, prepare
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.plan import cost
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.tasks.classify import Classify
from tools.benches import measure
from tools.benches.optimizer import timm_lamb

STEPS = {  # recipe, pixels, images
    "cpu": {"ViT-S@224, b8": ("vit_s_800ep_tract", 224, 8)},
    "cuda": {
        "ViT-S@224, b256": ("vit_s_800ep_tract", 224, 256),
        "ViT-S@224, b64": ("vit_s_800ep_tract", 224, 64),
        "ViT-B@192, b256": ("vit_b_800ep_tract", 192, 256),
    },
}
LANES = {  # images a lane
    "cpu": ("ViT-S@224, 4 lanes of 2", 2),
    "cuda": ("ViT-S@224, 4 lanes of 64", 64),
}
SUBSET = "3 ViT-B blocks@192, drop path 0.2"
COLUMNS = ("case", "variant", "ms", "time / first", "images/s", "MFU")
Step = Callable[[Tensor, Tensor], None]  # of images and labels
Rows = list[list[str]]


# ---- the steps -----------------------------------------------------------------------------------


class InFloat32(nn.Module):
    """torch_tract's layer, whose backward pass fails under autocast."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def their_model(recipe: Recipe, like_deit: bool, upstream: bool) -> nn.Module:
    """timm's model as DeiT or timm trains it; upstream: with torch_tract's layer."""
    size = recipe.data.image_size
    net = timm.create_model(recipe.model.name, img_size=size, **recipe.model.args).train()
    for layer in net.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = not like_deit
        for name in ("drop_path1", "drop_path2"):
            if hasattr(layer, name):
                setattr(layer, name, TimmDropPath(recipe.model.drop_path))
    if upstream:
        import torch_tract

        layer = torch_tract.TrAct(net.patch_embed.proj, l=recipe.model.tract)
        net.patch_embed.proj = InFloat32(layer)
    return net


def theirs(
    recipe: Recipe,
    device: torch.device,
    like_deit: bool,
    upstream: bool = False,
    compiled: bool = False,
) -> Step:
    """Return a step of D or T."""
    net = their_model(recipe, like_deit, upstream).to(device)
    decay, kept = recipe.optim.weight_decay, net.no_weight_decay()
    groups = param_groups_weight_decay(net, decay, no_weight_decay_list=kept)
    optimizer = timm_lamb(groups, recipe.optim, foreach=False if like_deit else None)
    if compiled:
        net.compile()
    mix, classes = recipe.mix, recipe.data.classes
    mixup = Mixup(mix.mixup, mix.cutmix, label_smoothing=0.0, num_classes=classes)

    def step(images: Tensor, labels: Tensor) -> None:
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


def start_engine(recipe: Recipe, model: nn.Module) -> Engine:
    """Return the engine of a run, whose precision need not be that of an earlier run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return prepare(launch(recipe), recipe, model)


def ours(
    recipe: Recipe,
    lanes_per_forward: int = 1,
    ahead: bool = True,
    change: Callable[[nn.Module], object] = lambda model: None,
) -> Step:
    """Return what the training loop calls for the lanes of a step, after `change` to the model."""
    task = Classify(recipe, load_splits(recipe.data).train)
    lanes = recipe.batch.lanes
    change(task.model)
    mine = start_engine(recipe, task.model)
    task.model.train()
    for layer in task.tract_layers:
        layer.ahead = ahead
    seeds = itertools.count()

    def step(images: Tensor, labels: Tensor) -> None:
        pairs = zip(images.chunk(lanes), labels.chunk(lanes), strict=True)
        parts = [{"image": image, "label": label} for image, label in pairs]
        for first in range(0, lanes, lanes_per_forward):
            end = first + lanes_per_forward
            drawn = list(itertools.islice(seeds, lanes_per_forward))
            with mine.lane(end == lanes):
                loss = task.loss(mine.model, parts[first:end], drawn)["loss"]
                mine.backward(loss * lanes_per_forward / lanes)
        mine.step(recipe.optim.lr)

    return step


def synthetic(name: str, *overrides: str) -> Recipe:
    common = ["data.name=synthetic", "precision.autocast=bf16", "augment.repeats=1"]
    return load_recipe(name, [*common, *overrides])


# ---- the cases -----------------------------------------------------------------------------------


def product(device: torch.device) -> tuple[Callable, float]:
    """Return a matrix product in bf16 and its FLOPs, against which MFU is measured."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: torch.mm(a, b), 2.0 * size**3


def variants(name: str, shape: list[str], device: torch.device, compiled: bool) -> dict[str, Step]:
    """Return the steps to compare, ours with TrAct first."""
    recipe = synthetic(name, *shape)
    plain = synthetic(name, "model.tract=null", *shape)
    steps = {"ours": ours(recipe), "ours, no TrAct": ours(plain)}
    if measure.version("torch_tract"):
        steps["D + U"] = theirs(recipe, device, like_deit=True, upstream=True)
        steps["T + U"] = theirs(recipe, device, like_deit=False, upstream=True)
    else:
        print("torch_tract is not installed (requirements-dev.txt): no D + U and no T + U")
    steps["T, no TrAct"] = theirs(recipe, device, like_deit=False)
    if device.type == "cuda":
        steps["D, no TrAct"] = theirs(recipe, device, like_deit=True)
        steps["ours, Gram matrix in the backward pass"] = ours(recipe, ahead=False)
    if compiled:
        steps["ours, compiled"] = ours(synthetic(name, "precision.compile=true", *shape))
        steps["Tc, no TrAct"] = theirs(recipe, device, like_deit=False, compiled=True)
    return steps


def measure_step(case: str, rounds: int, device: torch.device, compiled: bool) -> tuple[dict, Rows]:
    """Measure complete steps and a matrix product beside them."""
    torch.compiler.reset()  # else shapes of the previous case would make this one's dynamic
    name, pixels, batch = STEPS[device.type][case]
    shape = [f"data.image_size={pixels}", f"batch.size={batch}", "batch.lanes=1"]
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    multiply, flops = product(device)
    steps = variants(name, shape, device, compiled)
    runs = {label: partial(step, images, labels) for label, step in steps.items()}
    samples = measure.interleaved({**runs, "matrix product": multiply}, rounds, device)
    result = measure.compare(samples)
    for label in runs if device.type == "cuda" else ():
        result[label]["peak_mib"] = measure.peak_bytes(runs[label], device) / measure.MIB
    peak = flops / (result["matrix product"]["ms"][1] / 1e3)
    recipe = synthetic(name, *shape)
    training = cost.measure(recipe, build_model(recipe)).training
    rows = []
    for label in runs:
        rate = 1e3 * batch / result[label]["ms"][1]
        mfu = rate * training / peak
        result[label] |= {"images_per_s": rate, "mfu": mfu}
        rows.append(row(case, label, result[label], rate, f"{mfu:.0%}"))
    result["matrix product"]["tflops"] = peak / 1e12
    multiplied = f"{result['matrix product']['ms'][1]:,.1f}"
    rows.append([case, "matrix product", multiplied, "", f"{peak / 1e12:.3g} TFLOP/s", ""])
    return result, rows


def row(case: str, label: str, figures: dict, rate: float, mfu: str = "") -> list[str]:
    milliseconds = figures["ms"][1]
    ratio = measure.ratio_text(figures["ratio"])
    return [case, label, f"{milliseconds:,.0f}", ratio, f"{rate:,.3g}", mfu]


def measure_runs(
    case: str, runs: dict[str, Callable[[], None]], images: int, rounds: int, device: torch.device
) -> tuple[dict, Rows]:
    """Measure runs of `images` images against the first of them."""
    result = measure.compare(measure.interleaved(runs, rounds, device))
    rows = [
        row(case, label, figures, 1e3 * images / figures["ms"][1])
        for label, figures in result.items()
    ]
    return result, rows


def shared_lanes(rounds: int, device: torch.device) -> tuple[dict, Rows]:
    """Measure a step of four lanes, in one forward pass and one after the other."""
    case, size = LANES[device.type]
    recipe = synthetic("vit_s_800ep_tract", f"batch.size={4 * size}", "batch.lanes=4")
    images = torch.randn(4 * size, 3, 224, 224, device=device)
    labels = torch.randint(1000, (4 * size,), device=device)
    together = ours(recipe, lanes_per_forward=4)
    one_by_one = ours(recipe)
    runs = {
        "in one forward": partial(together, images, labels),
        "one by one": partial(one_by_one, images, labels),
    }
    return measure_runs(case, runs, 4 * size, rounds, device)


def drop_path(rounds: int, device: torch.device) -> tuple[dict, Rows]:
    """Measure forward and backward pass of blocks only, with new draws each time."""
    batch = 10 if device.type == "cpu" else 256
    x = torch.randn(batch, 145, 768, device=device, requires_grad=True)

    def block_step(net: nn.Module, layers: list[DropPath]) -> None:
        draw_drop_path(layers, batch, 0, device)
        with torch.autocast(device.type, torch.bfloat16):
            net.blocks(x).sum().backward()

    runs = {}
    for mode in ("subset", "mask"):
        settings = ["model.args.depth=3", "model.drop_path=0.2", f"model.drop_path_mode={mode}"]
        net = build_model(load_recipe("vit_b_800ep", settings)).to(device).train()
        layers = [layer for layer in net.modules() if isinstance(layer, DropPath)]
        runs[mode] = partial(block_step, net, layers)
    return measure_runs(f"{SUBSET}, b{batch}", runs, batch, rounds, device)


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print complete steps, shared lanes and drop path."""
    rounds = measure.rounds_of(arguments, 7)
    compiled = arguments.compile or device.type == "cuda"
    cases = {
        case: partial(measure_step, case, rounds, device, compiled) for case in STEPS[device.type]
    }
    cases[LANES[device.type][0]] = partial(shared_lanes, rounds, device)
    cases[SUBSET] = partial(drop_path, rounds, device)
    results, rows = {}, []
    for case, run_case in cases.items():
        if measure.wanted(case, arguments):
            results[case], more = run_case()
            rows += more
    print(table(COLUMNS, rows))
    print(f"\n{measure.RATIOS} MFU: of the matrix product in this run, without TrAct's own work.")
    return results
