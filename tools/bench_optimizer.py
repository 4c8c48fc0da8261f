"""`bench.py optimizer`: LAMB's step as ours, as timm's loop over parameters and as timm's default, foreach."""

import argparse
import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import timm
import torch
from timm.optim import Lamb as TimmLamb
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from deit_tract.optim.build import build_optimizer
from deit_tract.recipe.resolve import load_recipe
from tools.bench import compare, interleaved, markdown, ratio_text, rounds_of

CASES = {"ViT-S": "deit3_small_patch16_224", "ViT-B": "deit3_base_patch16_224"}
COLUMNS = [
    "case", "variant", "ms", "time / ours", "operations", "GPU launches, estimated", "apart from ours",
    "apart from float64",
]  # fmt: skip
L2 = 50 << 20  # bytes of an H100's cache, by which timm cuts its lists


def variants(recipe) -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    """Optimizers with the same settings and parameter groups."""

    def timms(foreach: bool | None):
        def make(model: nn.Module):
            settings = recipe.optim
            groups = [{key: group[key] for key in ("params", "weight_decay")}
                      for group in build_optimizer(settings, model).param_groups]  # fmt: skip
            return TimmLamb(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps,
                            max_grad_norm=settings.clip_grad, **mode(foreach))  # fmt: skip

        return make

    made = {"ours": lambda model: build_optimizer(recipe.optim, model), "timm, loop": timms(False)}
    return made | ({"timm, foreach": timms(True)} if mode(True) else {})


def mode(foreach: bool | None) -> dict[str, bool | None]:
    """The argument for timm's LAMB; none where timm is older than its second mode."""
    return {"foreach": foreach} if "foreach" in inspect.signature(TimmLamb).parameters else {}


def with_gradients(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = (torch.randn(p.shape, generator=generator) * 1e-3).to(p.device)
    return model


def ten_steps(
    make: Callable, model: nn.Module, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """The parameters after ten steps with the same gradients, whose sign turns."""
    model = with_gradients(copy.deepcopy(model)).to(dtype)
    optimizer, gradients = make(model), [p.grad.clone() for p in model.parameters()]
    for step in range(10):
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            torch.mul(gradient, (-0.7) ** step, out=p.grad)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest relative distance of a tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item()
        for a, b in pairs
    )


# ---- launches --------------------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts ATen operations that are no views, and estimates their launches on a GPU.

    A foreach operation's lists are cut as CUDA's multi_tensor_apply cuts them: chunks of 65,536 elements, at most 320
    chunks and, for lists side by side, so many tensors a launch. Lists whose tensors differ in shape go one by one.
    """

    TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}

    def __init__(self):
        super().__init__()
        self.operations = self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view:
            self.operations += 1
            lists = [
                a
                for a in args
                if isinstance(a, list | tuple) and len(a) and isinstance(a[0], torch.Tensor)
            ]
            self.launches += self._of(function.overloadpacket.__name__, lists, out)
        return out

    def _of(self, name: str, lists: list, out) -> int:
        if not (name.startswith("_foreach") or name.startswith("_fused")):
            return 1
        lists = lists[:4] if name.startswith("_fused") else lists  # the step counts go along
        if any(
            t.shape != u.shape for other in lists[1:] for t, u in zip(lists[0], other, strict=True)
        ):
            return len(lists[0])
        if name == "_foreach_norm":
            return 1 + self._cut(lists[0], 1)  # the last one adds up
        return self._cut(lists[0], len(lists) + (out is not None and not name.endswith("_")))

    def _cut(self, tensors: list[torch.Tensor], depth: int) -> int:
        launches = held = blocks = 0
        for t in tensors:
            held += 1
            for _ in range(-(-t.numel() // 65536)):
                blocks += 1
                if blocks == 320:
                    launches, blocks, held = launches + 1, 0, 1
            if held == self.TENSORS[depth] and blocks:
                launches, blocks, held = launches + 1, 0, 0
        return launches + bool(blocks)


def counted(make: Callable, name: str) -> Launches:
    """A step on tensors without numbers that pose as a GPU's."""
    properties = mock.patch(
        "torch.cuda.get_device_properties", lambda *_: SimpleNamespace(L2_cache_size=L2)
    )
    with torch.device("meta"):
        model = timm.create_model(name)
    with FakeTensorMode(), properties:
        for module in model.modules():
            for key, p in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(torch.empty(p.shape, device="cuda")))
                getattr(module, key).grad = torch.empty(p.shape, device="cuda")
        optimizer = make(model)
        optimizer.step()  # makes the state
        with Launches() as count:
            optimizer.step()
    return count


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Milliseconds of a step, distance of the parameters after ten, operations and launches.

    In float64 steps are timm's loop: what LAMB is, up to float32's rounding.
    """
    made = variants(load_recipe("vit_s_800ep"))
    results, rows = {}, []
    for case, name in CASES.items():
        if arguments.only and not any(word in case for word in arguments.only):
            continue
        model = timm.create_model(name).to(device)
        steps = {
            label: make(with_gradients(copy.deepcopy(model))).step for label, make in made.items()
        }
        result = compare(interleaved(steps, rounds_of(arguments, 11), device), "ours")
        ours, exact = (
            ten_steps(made["ours"], model),
            ten_steps(made["timm, loop"], model, torch.float64),
        )
        for label, make in made.items():
            count, after = counted(make, name), ten_steps(make, model)
            result[label] |= {
                "operations": count.operations,
                "launches": count.launches,
                "apart": apart(after, ours),
                "apart_float64": apart(after, exact),
            }
            figures = result[label]
            rows.append([case, label, f"{figures['ms'][1]:.4g}", ratio_text(figures["ratio"]),
                         f"{count.operations:,}", f"{count.launches:,}", f"{figures['apart']:.0e}",
                         f"{figures['apart_float64']:.0e}"])  # fmt: skip
        results[case] = result
    print(markdown(COLUMNS, rows))
    print(
        "\nRatios: median (quartiles) over rounds. Apart: parameters after ten steps, largest relative distance."
    )
    return results
