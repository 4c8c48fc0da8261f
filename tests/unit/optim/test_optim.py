"""Optimizers: decay groups on the bare model, LAMB against float64, the learning rate at chosen
steps.
"""

import copy
import math

import pytest
import torch
from timm import create_model
from timm.optim import create_optimizer_v2, param_groups_layer_decay

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.optim.build import build_optimizer, clip_gradients, set_lr
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.schedule.learning_rate import learning_rate
from tests.helpers.optim import lamb_float64
from tests.helpers.recipes import NAMES


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", overrides)


def test_vectors_biases_and_the_models_skips_are_not_decayed():
    settings = recipe()
    model = build_model(settings)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(settings.optim, model).param_groups
    plain, decayed = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]
    blocks = [
        f"blocks.{i}.{layer}.weight"
        for i in range(3)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert decayed == {"patch_embed.proj.weight", "head.weight", *blocks}
    assert {"pos_embed", "patch_embed.proj.bias", "blocks.0.ls1.gamma"} <= plain
    assert len(plain) + len(decayed) == len(names)


def test_vit_small_splits_126_to_50():
    settings = load_recipe("vit_s_800ep_tract")
    plain, decayed = build_optimizer(settings.optim, build_model(settings)).param_groups
    assert (len(plain["params"]), len(decayed["params"])) == (126, 50)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 10.0])
def test_lamb_is_the_float64_statement(scale):
    torch.manual_seed(0)
    settings = recipe("optim.lr=0.01")
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(settings.optim, model)
    grads_per_step = [[torch.randn_like(p) * scale for p in model.parameters()] for _ in range(20)]
    for grads in grads_per_step:
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g.clone()
        clip_gradients(settings.optim, model)
        optimizer.step()
    expected = lamb_float64(start, grads_per_step, 0.01, [0.05, 0, 0.05, 0], clip=1.0)
    for p, w in zip(model.parameters(), expected, strict=True):
        assert (p.double() - w).norm() / w.norm() < 2e-6


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_clipping_is_global_and_reports_the_norm_before(name):
    model = torch.nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    norm = clip_gradients(recipe(f"optim.name={name}", "optim.clip_grad=0.5").optim, model)
    assert norm.item() == pytest.approx(2 * math.sqrt(8))
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("name", "limit"), [("lamb", "1e-3"), ("sgd", "null")])
def test_gradients_are_left_alone_where_the_optimizer_clips_or_nothing_does(name, limit):
    model = torch.nn.Linear(3, 2)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = copy.deepcopy([p.grad for p in model.parameters()])
    clip_gradients(recipe(f"optim.name={name}", f"optim.clip_grad={limit}").optim, model)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_optimizers_get_the_recipes_values():
    model = torch.nn.Linear(3, 2)
    sgd = build_optimizer(recipe("optim.name=sgd", "optim.momentum=0.7").optim, model)
    adamw = build_optimizer(
        recipe("optim.name=adamw", "optim.betas=[0.8,0.9]", "optim.eps=1e-5").optim, model
    )
    assert sgd.defaults["momentum"] == 0.7
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.9), 1e-5)


@pytest.mark.parametrize("nesterov", ["true", "false"])
def test_sgd_is_the_float64_statement(nesterov):
    """v = m v + g; the step is lr v, with Nesterov's momentum lr (g + m v)."""
    settings = [
        "optim.name=sgd",
        "optim.lr=0.1",
        "optim.momentum=0.7",
        f"optim.nesterov={str(nesterov).lower()}",
    ]
    settings.append("optim.decay_all=true")
    model = torch.nn.Linear(3, 2)
    sgd = build_optimizer(recipe(*settings, "optim.weight_decay=0.05").optim, model)
    expected = model.weight.detach().double()
    velocity = torch.zeros_like(expected)
    for _ in range(4):
        model.weight.grad = torch.randn_like(model.weight)
        model.bias.grad = torch.zeros_like(model.bias)
        gradient = model.weight.grad.double() + 0.05 * expected
        velocity = 0.7 * velocity + gradient
        expected = expected - 0.1 * (gradient + 0.7 * velocity if nesterov == "true" else velocity)
        sgd.step()
    torch.testing.assert_close(model.weight.double(), expected, rtol=1e-6, atol=1e-6)


def test_sgd_of_the_transfer_recipes_is_timms():
    """DeiT's --opt sgd, to the bit: groups, Nesterov's momentum, decay."""
    optim = load_recipe("transfer_cars_vit_s_sgd").optim
    ours = create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=12, num_heads=2)
    theirs = copy.deepcopy(ours)
    settings = {"lr": optim.lr, "weight_decay": optim.weight_decay, "momentum": optim.momentum}
    optimizers = [build_optimizer(optim, ours), create_optimizer_v2(theirs, "sgd", **settings)]
    for _ in range(4):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)


def test_the_sources_with_nesterovs_momentum_have_it():
    """timm's --opt sgd has it; the CIFAR script and the detector's reference do not."""
    for name in NAMES:
        optim = load_recipe(name).optim
        assert optim.nesterov == (name.startswith("transfer_") and "_sgd" in name), name


def test_nesterovs_momentum_of_zero_is_refused():
    with pytest.raises(UserError, match=r"optim.nesterov=true: Nesterov's momentum is 0; raise"):
        recipe("optim.nesterov=true", "optim.momentum=0")


def test_cosine_spans_the_run_and_warm_up_is_cut_out_of_it():
    lr = learning_rate(
        recipe(
            "optim.lr=1",
            "schedule.steps=100",
            "schedule.warmup_steps=10",
            "schedule.warmup_lr=0.5",
            "schedule.min_lr=0.1",
        ),
        20,
    )
    assert (lr(0), lr(5)) == (0.5, 0.75)
    assert lr(10) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.1)) / 2)
    assert lr(50) == pytest.approx(0.55)
    assert lr(100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 1 / 2, (2 - math.sqrt(2)) / 4, 0]),
        ("linear", [1, 3 / 4, 1 / 2, 1 / 4, 0]),
        ("rex", [1, 6 / 7, 2 / 3, 2 / 5, 0]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 20])
def test_what_is_left_of_the_peak_after_each_quarter_of_the_fall(name, left, warmup):
    """With warmup_prefix the fall begins after the warm-up, else with the run."""
    overrides = [f"schedule.name={name}", f"schedule.warmup_steps={warmup}", "optim.lr=1"]
    overrides += [f"schedule.steps={100 + warmup}", "schedule.min_lr=0.1"]
    lr = learning_rate(recipe(*overrides, "schedule.warmup_prefix=true"), 20)
    expected = [0.1 + 0.9 * share for share in left]
    assert [lr(warmup + step) for step in (0, 25, 50, 75, 100)] == pytest.approx(expected)
    whole = learning_rate(recipe(*overrides), 20)
    middle = whole((100 + warmup) // 2)
    assert middle == pytest.approx(expected[2])


def test_durations_in_epochs_and_steps_are_the_same_schedule():
    epochs = learning_rate(recipe("schedule.epochs=5", "schedule.warmup_epochs=0.5"), 20)
    steps = learning_rate(recipe("schedule.steps=100", "schedule.warmup_steps=10"), 20)
    assert [epochs(s) for s in range(100)] == [steps(s) for s in range(100)]


def test_a_constant_schedule_stays_at_the_peak():
    lr = learning_rate(
        recipe("schedule.name=constant", "schedule.steps=9", "schedule.warmup_steps=0"), 20
    )
    assert {lr(step) for step in range(9)} == {8e-3}


@pytest.mark.parametrize(
    "overrides", [["schedule.epochs=0.01"], ["schedule.steps=10", "schedule.warmup_epochs=2"]]
)
def test_a_run_that_rounds_to_nothing_or_a_longer_warm_up_is_refused(overrides):
    with pytest.raises(UserError, match="schedule"):
        learning_rate(recipe("schedule.warmup_epochs=0", *overrides), 20)


def rates(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, tuple]:
    """(factor on the learning rate, weight decay) of every parameter, by its name."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = group.get("lr_scale", 1.0), group["weight_decay"]
    return found


def test_layer_decay_is_timms_and_beits_with_tract_and_bias_lr():
    settings = recipe("optim.layer_decay=0.5", "optim.bias_lr=2.0")
    model = build_model(settings)
    found = rates(build_optimizer(settings.optim, model), model)
    assert found.keys() == dict(model.named_parameters()).keys()
    # depth 3: BEiT's layer 0 is the embedding, 1 to 3 the blocks, 4 the norm and classifier
    assert found["head.weight"] == (1.0, 0.05) and found["head.bias"] == (2.0, 0.0)
    for layer in range(3):
        assert found[f"blocks.{layer}.attn.qkv.weight"] == (0.5 ** (3 - layer), 0.05)
        assert found[f"blocks.{layer}.attn.qkv.bias"] == (2 * 0.5 ** (3 - layer), 0.0)
    assert found["patch_embed.proj.weight"] == (0.5**4, 0.05), "TrAct's layer is the first"
    assert found["pos_embed"] == (0.5**4, 0.0)
    plain = timm_groups(model, 0.5)
    expected = {
        name: (scale * (2 if name.endswith("bias") else 1), decay) for name, scale, decay in plain
    }
    assert found == expected


def timm_groups(model: torch.nn.Module, factor: float) -> list[tuple[str, float, float]]:
    groups = param_groups_layer_decay(
        model, 0.05, layer_decay=factor, no_weight_decay_list=model.no_weight_decay()
    )
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        (names[id(p)], group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    ]


def test_layer_decay_leaves_the_first_layer_to_its_own_optimizer():
    settings = recipe("optim.name=adamw", "optim.layer_decay=0.5", "optim.first_layer.lr=0.1")
    model = build_model(settings)
    optimizer = build_optimizer(settings.optim, model)
    set_lr(optimizer, settings.optim.lr)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(model.patch_embed.proj.weight)] == pytest.approx(0.1)
    assert rate[id(model.pos_embed)] == pytest.approx(0.5**4 * settings.optim.lr)
    every = recipe("optim.layer_decay=0.5", "optim.decay_all=true")
    found = rates(build_optimizer(every.optim, model), model)
    assert {decay for _, decay in found.values()} == {0.05}
