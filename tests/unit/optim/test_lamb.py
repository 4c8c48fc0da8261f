"""LAMB against timm's and a float64 statement, its checkpoints, and what it launches."""

import copy
import inspect

import pytest
import timm
import torch
from timm.optim import Lamb as TimmLamb
from timm.optim import param_groups_weight_decay
from torch.utils._python_dispatch import TorchDispatchMode

from deit_tract.optim import lamb
from deit_tract.optim.lamb import Lamb
from tests.helpers.optim import lamb_float64

SETTINGS = {"lr": 4e-3, "betas": (0.9, 0.999), "eps": 1e-8, "max_grad_norm": 1.0}
# "together" as on a GPU; "foreach" is for devices without the fused kernel
WAYS = ["fused", "foreach", "fused, together", "foreach, together"]


@pytest.fixture
def way(request, monkeypatch):
    if "foreach" in request.param:
        monkeypatch.setattr(lamb, "FUSED", set())
    if "together" in request.param:
        monkeypatch.setattr(lamb, "ONE_BY_ONE", set())
    return request.param


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3, img_size=32, init_values=1e-4
    )
    torch.nn.init.zeros_(vit.head.weight)  # no norm: no trust ratio
    vit.patch_embed.proj.to(memory_format=torch.channels_last)
    return vit


def groups(vit: torch.nn.Module) -> list[dict]:
    return param_groups_weight_decay(vit, 0.05, no_weight_decay_list=vit.no_weight_decay())


def give_gradients(vit: torch.nn.Module, step: int, scale: float) -> None:
    """The same ones for the same step; none for one parameter, zeros for another, another layout
    for a third.
    """
    generator = torch.Generator().manual_seed(step)
    for name, p in vit.named_parameters():
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
        if name == "blocks.1.mlp.fc1.weight":
            p.grad = p.grad.t().contiguous().t()
    vit.cls_token.grad = None
    vit.blocks[0].attn.qkv.weight.grad.zero_()


def trained(
    vit: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range, scale: float
) -> torch.nn.Module:
    for step in steps:
        give_gradients(vit, step, scale)
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (step + 1) / 10
        optimizer.step()
    return vit


def apart(a: torch.nn.Module, b: torch.nn.Module) -> float:
    """The largest relative distance between two models' parameters."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(
        ((p.double() - q.double()).norm() / q.double().norm().clamp(min=1e-9)).item()
        for p, q in pairs
    )


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("scale", [1e-5, 1e-1], ids=["unclipped", "clipped"])
def test_ten_steps_are_timms(way, foreach, scale):
    known = inspect.signature(TimmLamb).parameters
    if foreach and "foreach" not in known:
        pytest.skip("this timm's LAMB has one mode")
    ours, theirs = model(), model()
    trained(ours, Lamb(groups(ours), **SETTINGS), range(10), scale)
    trained(
        theirs,
        TimmLamb(
            groups(theirs), **SETTINGS, **({"foreach": foreach} if "foreach" in known else {})
        ),
        range(10),
        scale,
    )
    assert apart(ours, theirs) < 1e-6
    assert apart(theirs, model()) > 1e-3


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_twenty_steps_are_the_float64_statement(way, clip):
    torch.manual_seed(0)
    shapes, decay = [(6, 5), (5,), (3, 4, 2, 2), (1,)], [0.05, 0.0, 0.1, 0.0]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    start = [p.detach().clone() for p in params]
    optimizer = Lamb(
        [{"params": [p], "weight_decay": d} for p, d in zip(params, decay, strict=True)],
        lr=0.01,
        max_grad_norm=clip,
    )
    grads_per_step = [[torch.randn_like(p) for p in params] for _ in range(20)]
    for grads in grads_per_step:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for p, w in zip(params, lamb_float64(start, grads_per_step, 0.01, decay, clip), strict=True):
        assert (p.double() - w).norm() / w.norm() < 1e-6


@pytest.mark.parametrize("source", [TimmLamb, Lamb])
def test_a_checkpoint_goes_on_and_timms_too(source, tmp_path):
    """Its own to the bit; timm's state has the same keys, its step a tensor."""
    whole, cut = model(), model()
    trained(whole, source(groups(whole), **SETTINGS), range(6), 0.1)
    first = source(groups(cut), **SETTINGS)
    trained(cut, first, range(3), 0.1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Lamb(groups(cut), **SETTINGS)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trained(cut, second, range(3, 6), 0.1)
    assert apart(cut, whole) < 1e-6 if source is TimmLamb else apart(cut, whole) == 0.0
    assert [group["step"] for group in second.param_groups] == [6, 6]
    assert {key for state in second.state.values() for key in state} == {"exp_avg", "exp_avg_sq"}


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_norm_before_clipping_can_be_read():
    vit = model()
    give_gradients(vit, 0, 1.0)
    expected = torch.stack(
        [p.grad.double().norm() for p in vit.parameters() if p.grad is not None]
    ).norm()
    optimizer = Lamb(groups(vit), **SETTINGS)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floats_than_float32_are_clipped_too(dtype):
    ours, expected = model().to(dtype), model()
    trained(ours, Lamb(groups(ours), **SETTINGS), range(1), 1.0)
    trained(expected, Lamb(groups(expected), **SETTINGS), range(1), 1.0)
    assert apart(ours.float(), expected) < (1e-6 if dtype == torch.float64 else 2e-2)


@pytest.mark.parametrize("way", ["fused", "foreach"], indirect=True)
def test_on_a_cpu_decayed_tensors_go_one_by_one(way):
    vit = model()
    optimizer = Lamb(groups(vit), **SETTINGS)
    give_gradients(vit, 0, 1.0)
    with Operations() as operations:
        optimizer.step()
    decayed = len(optimizer.param_groups[1]["params"])  # the others in one call
    assert operations.names.count("_fused_adamw_") == (0 if way == "foreach" else 1 + decayed)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_on_a_gpu_no_step_waits_and_operations_do_not_grow_with_the_number_of_tensors(way):
    """On tensors that pose as a GPU's, which a machine without one can have, and which cannot be
    read.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    counts = []
    for tensors in (3, 30):
        with FakeTensorMode():
            params = [
                torch.nn.Parameter(torch.empty(8, 8, device="cuda")) for _ in range(2 * tensors)
            ]
            for p in params:
                p.grad = torch.empty_like(p)
            halves = [
                {"params": params[:tensors], "weight_decay": 0.0},
                {"params": params[tensors:]},
            ]
            optimizer = Lamb(halves, lr=1e-3, weight_decay=0.05)
            optimizer.step()  # makes the state
            with Operations() as operations:
                optimizer.step()
        assert not {"_local_scalar_dense", "item", "nonzero", "is_nonzero"} & set(operations.names)
        counts.append(len([name for name in operations.names if name not in ("default", "device")]))
    assert counts[0] == counts[1] < (30 if "fused" in way else 40)


def test_a_closure_is_called_and_a_model_without_gradients_stays():
    vit = model()
    optimizer = Lamb(groups(vit), **SETTINGS)
    before = copy.deepcopy(vit)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert all(
        torch.equal(p, q) for p, q in zip(vit.parameters(), before.parameters(), strict=True)
    )
