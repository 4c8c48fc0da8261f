"""The step: several lanes in one forward, drop path on a subset, compilation, precision, pace and
profile.
"""

from types import SimpleNamespace

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive
from deit_tract.data.sets.load import load_splits
from deit_tract.data.transforms import augment, colour, fast
from deit_tract.engine.batch_norm import RunningStatistics
from deit_tract.engine.replicas import Replicas
from deit_tract.models import drop_path
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path, set_drop_path
from deit_tract.models.precision import resolve_precision
from deit_tract.optim.build import build_optimizer
from deit_tract.plan import cost
from deit_tract.plan.gpus import known_peak
from deit_tract.plan.lanes import lanes_per_forward
from deit_tract.recipe.launch import Launch, check_launch
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks import build_task
from deit_tract.tract import gram
from deit_tract.train import loop
from deit_tract.train.meter import Meter
from tests.helpers.step import DRAWS


@pytest.mark.parametrize("mode", ["mask", "subset"])
@pytest.mark.parametrize("several", [2, 3, 4])  # 3 of 4 lanes: 3 and 1
def test_gradients_of_lanes_in_one_forward_are_those_one_by_one(mode, several):
    """Every lane keeps its mixup, drop path and Gram matrix; to 1e-6 of each gradient."""
    recipe = load_recipe("quickstart", [*DRAWS, f"model.drop_path_mode={mode}"])
    task = build_task(recipe, load_splits(recipe.data, recipe.detect).train)
    task.model.train()
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "image": torch.randn(16, 1, 8, 8, generator=generator),
            "label": torch.randint(10, (16,), generator=generator),
        }
        for _ in range(4)
    ]
    seeds = [derive(0, "lane", 5, lane) for lane in range(4)]
    gradients, sums = [], []
    for size in (1, several):
        task.model.zero_grad()
        total = 0.0
        for first in range(0, 4, size):
            lanes = slice(first, first + size)
            loss = task.loss(task.model, batches[lanes], seeds[lanes])["loss"]
            loss = loss * len(seeds[lanes]) / 4
            loss.backward()
            total += loss.item()
        sums.append(total)
        gradients.append({name: p.grad.clone() for name, p in task.model.named_parameters()})
    assert sums[0] == pytest.approx(sums[1], abs=1e-6)
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 1e-6 * expected.norm(), name


@pytest.mark.parametrize(
    ("name", "why"), [("resnet18", "bn1 (BatchNorm2d)"), ("vit_tiny_patch16_224", "pos_drop")]
)
def test_models_that_couple_samples_are_refused(name, why):
    net = timm.create_model(
        name, **({"drop_rate": 0.1, "pos_drop_rate": 0.1} if "vit" in name else {})
    )
    cpu = torch.device("cpu")
    with pytest.raises(
        UserError, match=r"batch.lanes_per_forward: .*depends on the other samples"
    ) as error:
        lanes_per_forward(load_recipe("quickstart", ["batch.lanes_per_forward=2"]), net, cpu)
    assert why in str(error.value)
    assert lanes_per_forward(load_recipe("quickstart"), net, cpu) == 1
    plain = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert (
        lanes_per_forward(load_recipe("quickstart", ["batch.lanes_per_forward=2"]), plain, cpu) == 2
    )


@pytest.mark.parametrize(
    ("overrides", "memory", "lanes"),
    [
        (["batch.size=2048", "batch.lanes=32"], 140, 4),
        (["batch.size=2048", "batch.lanes=8"], 140, 1),
        (["batch.size=2048", "batch.lanes=32"], 1, 1),
        (["batch.size=64", "batch.lanes=2"], 140, 2),
    ],
)
def test_auto_fills_a_gpu_as_far_as_its_memory_goes(monkeypatch, overrides, memory, lanes):
    properties = SimpleNamespace(total_memory=memory * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    overrides = [*overrides, "model.args.depth=2", "precision.autocast=bf16"]
    recipe = load_recipe("vit_s_800ep_tract", overrides)
    with torch.device("meta"):
        net = build_model(recipe)
    assert lanes_per_forward(recipe, net, torch.device("cuda")) == lanes


def test_what_cannot_have_lanes_together_says_so(monkeypatch):
    with pytest.raises(UserError, match="lanes that share a forward have one gradient"):
        load_recipe("quickstart", ["batch.exact=true", "batch.lanes_per_forward=2"])
    for key, value in (("batch.lanes_per_forward", "2"), ("precision.compile", "true")):
        with pytest.raises(UserError, match=key):
            check_launch(load_recipe("quickstart", [f"{key}={value}"]), Launch(zero_stage=0))


# ---- drop path on a subset -----------------------------------------------------------------------


def subset(*overrides: str) -> torch.nn.Module:
    return build_model(
        load_recipe(
            "quickstart", ["model.drop_path_mode=subset", "model.drop_path=0.4", *overrides]
        )
    )


def drop_paths(net: torch.nn.Module) -> list[DropPath]:
    return [layer for layer in net.modules() if isinstance(layer, DropPath)]


def test_a_subset_is_that_masks_result_for_the_same_samples():
    """The masked model, told to drop what the subset drops with the subset's weight, gives the same
    gradients.
    """
    ours, masked = subset(), build_model(load_recipe("quickstart", ["model.drop_path=0.4"]))
    draw_drop_path(drop_paths(ours), 10, [3, 4], torch.device("cpu"))
    for one, other in zip(drop_paths(ours), drop_paths(masked), strict=True):
        assert one.kept.shape == (12,) and (one.kept[:6] < 10).all() and (one.kept[6:] >= 10).all()
        other.scale = torch.zeros(20).index_fill(0, one.kept, 20 / 12)
    images = torch.randn(20, 1, 8, 8)
    gradients = []
    for net in (ours.train(), masked.train()):
        net(images).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    ours.eval()
    masked.eval()
    assert torch.equal(ours(images), masked(images)), "evaluation knows no drop path"


def test_a_subset_keeps_the_mean_and_follows_its_seed():
    x, layer = torch.ones(10, 3), DropPath(0.3, subset=True)
    total = torch.zeros(10, 3)
    for seed in range(400):
        draw_drop_path([layer], 10, seed, torch.device("cpu"))
        total += layer.add(x, lambda kept: kept)
    assert (total / 400 - 2).abs().max() < 0.1, "x plus the mean of a branch that is x"
    first = layer.kept
    draw_drop_path([layer], 10, 399, torch.device("cpu"))
    assert torch.equal(layer.kept, first) and len(first) == 7


def test_a_subset_costs_less_and_needs_timms_blocks():
    full, part = (load_recipe("quickstart", [f"model.drop_path_mode={mode}", "model.drop_path=0.5"])
                  for mode in ("mask", "subset"))  # fmt: skip
    measured = [cost.measure(recipe, build_model(recipe)).training for recipe in (full, part)]
    assert 0.5 < measured[1] / measured[0] < 0.6
    with pytest.raises(UserError, match=r"model.drop_path_mode: .*other blocks than timm's ViT"):
        set_drop_path(timm.create_model("convnext_atto"), 0.1, "subset")


# ---- attention, precision, compilation -----------------------------------------------------------


def test_attention_is_torchs_fused_one():
    for name in ("quickstart", "vit_s_800ep_tract"):
        with torch.device("meta"):
            net = build_model(load_recipe(name))
        fused = [layer.fused_attn for layer in net.modules() if hasattr(layer, "fused_attn")]
        assert fused and all(fused)


@pytest.mark.parametrize(
    ("cuda", "bf16", "half"), [(False, False, "bf16"), (True, True, "bf16"), (True, False, "fp16")]
)
def test_auto_precision_is_bf16_where_it_is(monkeypatch, cuda, bf16, half):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    recipe = resolve_precision(load_recipe("vit_s_800ep_tract"))
    assert recipe.precision.autocast == half and recipe.name == "vit_s_800ep_tract"
    assert (
        resolve_precision(recipe) is recipe
        and resolve_precision(load_recipe("quickstart")).precision.autocast is None
    )


@pytest.mark.parametrize(
    ("name", "autocast", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA A40", None, 37.4e12),
        ("NVIDIA H200 NVL", "bf16", None),
    ],
)
def test_known_peaks_are_of_exactly_these_gpus(monkeypatch, name, autocast, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak(torch.device("cuda"), autocast) == peak
    assert known_peak(torch.device("cpu"), autocast) is None


# ---- waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_path_mode", ["mask", "subset"])
def test_nothing_of_a_step_reads_from_a_gpu(monkeypatch, drop_path_mode):
    """On tensors that pose as a GPU's and have no numbers: to look at one raises.

    Torch's own backward pass and timm's average are left out, which take a GPU; what TrAct adds to
    the one is called.
    """
    device, mode = torch.device("cuda"), FakeTensorMode(allow_non_fake_inputs=True)

    def posed(tensor, device):
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    def backward(loss):
        for p in task.model.parameters():
            p.grad = torch.empty_like(p)
        images = torch.empty(4, 3, 224, 224, device=device)
        rule, g = (
            layer._rule(images)[1],
            torch.empty(4, 384, 14, 14, dtype=torch.bfloat16, device=device),
        )
        raw = gram.raw_gradient(g, images, rule, layer.weight.shape)
        layer.weight.grad = gram.right_solve(raw, gram.gram_factor(images, rule))

    monkeypatch.setattr("deit_tract.tasks.classify.seed_generators", lambda seed, device: None)
    for module in (drop_path, colour, augment):
        monkeypatch.setattr(module, "send", posed)
    settings = [
        "model.args.depth=2",
        "model.drop_path=0.2",
        f"model.drop_path_mode={drop_path_mode}",
    ]
    recipe = load_recipe(
        "vit_s_800ep_tract", ["data.name=synthetic", "batch.size=8", "batch.lanes=2", *settings]
    )
    task = build_task(recipe, load_splits(recipe.data, recipe.detect).train)
    transform = fast.FastTransform(recipe, defer=True)
    task.model.train()
    [layer] = task.tract_layers
    draws = torch.stack([fast.draw(transform.colours) for _ in range(4)])
    accelerator = SimpleNamespace(
        prepare=lambda *given: given,
        backward=backward,
        unscale_gradients=lambda optimizer: None,
        scaler=None,
        num_processes=1,
        is_main_process=True,
        device=device,
    )
    with mode:
        for module in task.model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(torch.empty(p.shape, device=device)))
        pixels = [torch.empty(4, 224, 224, 3, dtype=torch.uint8, device=device) for _ in range(2)]
        with pytest.raises(DataDependentOutputException):
            pixels[0].sum().item()
        labels = torch.empty(4, dtype=torch.long, device=device)
        replicas = Replicas(
            accelerator, recipe, task.model, build_optimizer(recipe.optim, task.model)
        )
    batches = [{"image": transform.finish(images, draws), "label": labels} for images in pixels]
    run = SimpleNamespace(
        recipe=recipe,
        task=task,
        engine=replicas,
        forwards=[range(2)],
        averages={},
        lr=lambda step: 1e-3,
        stream=SimpleNamespace(lane_seed=lambda step, lane: lane),
        statistics=RunningStatistics(task.model, 2),
    )
    with mode, torch.autocast("cuda", torch.bfloat16):
        losses, norm = loop.Run.optimizer_step(run, 0, iter(batches))
        Meter(accelerator, None).add(1, losses, norm)
    assert losses["loss"].is_cuda and norm.is_cuda
