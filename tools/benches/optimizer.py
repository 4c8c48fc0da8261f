"""LAMB's step: ours, timm's loop over parameters, and timm's default, foreach."""

import argparse
import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import timm
import torch
from timm.optim import Lamb as TimmLamb
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from deit_tract.common.text import table
from deit_tract.optim.build import build_optimizer
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from tools.benches.measure import RATIOS, compare, interleaved, ratio_text, rounds_of, wanted

CASES = {"ViT-S": "deit3_small_patch16_224", "ViT-B": "deit3_base_patch16_224"}
COLUMNS = ["case", "variant", "ms", "time / ours", "operations", "GPU launches, estimated"]
COLUMNS += ["distance from ours", "distance from float64"]
FOREACH = "foreach" in inspect.signature(TimmLamb).parameters  # in timm's newer versions
L2 = 50 << 20  # bytes of an H100's cache, by which timm cuts its lists
Make = Callable[[nn.Module], torch.optim.Optimizer]


def variants(recipe: Recipe) -> dict[str, Make]:
    """Return makers of optimizers with the same settings and parameter groups."""
    settings = recipe.optim

    def ours(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(settings, model)

    def timms(foreach: bool) -> Make:
        def make(model: nn.Module) -> torch.optim.Optimizer:
            kept = ("params", "weight_decay")
            groups = [{key: group[key] for key in kept} for group in ours(model).param_groups]
            return timm_lamb(groups, settings, foreach)

        return make

    made = {"ours": ours, "timm, loop": timms(False), "timm, foreach": timms(True)}
    return {name: make for name, make in made.items() if FOREACH or name != "timm, foreach"}


def timm_lamb(groups: list[dict], settings, foreach: bool | None) -> TimmLamb:
    """timm's LAMB with a recipe's settings; a timm older than `foreach` goes without."""
    mode = {"foreach": foreach} if FOREACH else {}
    mode |= {"betas": settings.betas, "eps": settings.eps, "max_grad_norm": settings.clip_grad}
    return TimmLamb(groups, lr=settings.lr, **mode)


def with_gradients(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = (torch.randn(p.shape, generator=generator) * 1e-3).to(p.device)
    return model


def ten_steps(make: Make, model: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the parameters after ten steps with the same gradients, whose sign alternates."""
    model = with_gradients(copy.deepcopy(model)).to(dtype)
    optimizer = make(model)
    gradients = [p.grad.clone() for p in model.parameters()]
    for step in range(10):
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            torch.mul(gradient, (-0.7) ** step, out=p.grad)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest relative distance of a tensor."""

    def relative(a: Tensor, b: Tensor) -> float:
        a, b = a.double(), b.double()
        return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()

    return max(relative(a, b) for a, b in zip(ours, theirs, strict=True))


# ---- launches ------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts ATen operations that are not views, and estimates their launches on a GPU.

    A foreach operation's lists are cut as CUDA's multi_tensor_apply cuts them: chunks of 65,536
    elements, at most 320 chunks per launch and, depending on the number of lists, at most TENSORS.
    Lists whose tensors differ in shape go one tensor at a time.
    """

    TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view:
            self.operations += 1
            self.launches += self._of(function.overloadpacket.__name__, args, out)
        return out

    def _of(self, name: str, args: tuple, out) -> int:
        if not name.startswith(("_foreach", "_fused")):
            return 1
        sequences = [arg for arg in args if isinstance(arg, list | tuple) and len(arg)]
        lists = [sequence for sequence in sequences if isinstance(sequence[0], Tensor)]
        if name.startswith("_fused"):
            lists = lists[:4]  # the step counts go along
        shapes = [[tensor.shape for tensor in one] for one in lists]
        if any(other != shapes[0] for other in shapes):
            return len(lists[0])
        if name == "_foreach_norm":
            return 1 + self._cut(lists[0], 1)  # one more adds up
        returns_list = out is not None and not name.endswith("_")
        return self._cut(lists[0], len(lists) + returns_list)

    def _cut(self, tensors: list[Tensor], depth: int) -> int:
        launches = held = blocks = 0
        for tensor in tensors:
            held += 1
            for _ in range(-(-tensor.numel() // 65536)):
                blocks += 1
                if blocks == 320:
                    launches, blocks, held = launches + 1, 0, 1
            if held == self.TENSORS[depth] and blocks:
                launches, blocks, held = launches + 1, 0, 0
        return launches + bool(blocks)


def count_launches(make: Make, name: str) -> Launches:
    """Count a step on tensors without numbers that pose as a GPU's."""
    device = SimpleNamespace(L2_cache_size=L2)
    properties = mock.patch("torch.cuda.get_device_properties", lambda *_: device)
    with torch.device("meta"):
        model = timm.create_model(name)
    with FakeTensorMode(), properties:
        for module in model.modules():
            for key, p in list(module.named_parameters(recurse=False)):
                fake = nn.Parameter(torch.empty(p.shape, device="cuda"))
                fake.grad = torch.empty(p.shape, device="cuda")
                setattr(module, key, fake)
        optimizer = make(model)
        optimizer.step()  # makes the state
        with Launches() as count:
            optimizer.step()
    return count


# ---- the bench -----------------------------------------------------------------------------------


def measure(name: str, makers: dict[str, Make], rounds: int, device: torch.device) -> dict:
    """Milliseconds of a step, distance of the parameters after ten, operations and launches.

    timm's loop in float64 stands for exact LAMB.
    """
    model = timm.create_model(name).to(device)
    steps = {
        label: make(with_gradients(copy.deepcopy(model))).step for label, make in makers.items()
    }
    result = compare(interleaved(steps, rounds, device))
    ours = ten_steps(makers["ours"], model)
    exact = ten_steps(makers["timm, loop"], model, torch.float64)
    for label, make in makers.items():
        count = count_launches(make, name)
        after = ten_steps(make, model)
        result[label] |= {
            "operations": count.operations,
            "launches": count.launches,
            "apart": distance(after, ours),
            "apart_float64": distance(after, exact),
        }
    return result


def row(case: str, label: str, figures: dict) -> list[str]:
    times = [f"{figures['ms'][1]:.4g}", ratio_text(figures["ratio"])]
    counts = [f"{figures[key]:,}" for key in ("operations", "launches")]
    distances = [f"{figures[key]:.0e}" for key in ("apart", "apart_float64")]
    return [case, label, *times, *counts, *distances]


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print every case."""
    makers = variants(load_recipe("vit_s_800ep"))
    results, rows = {}, []
    for case, name in CASES.items():
        if wanted(case, arguments):
            results[case] = measure(name, makers, rounds_of(arguments, 11), device)
            rows += [row(case, label, figures) for label, figures in results[case].items()]
    print(table(COLUMNS, rows))
    print(f"\n{RATIOS} Distance: of a tensor after ten steps, the largest relative one.")
    return results
