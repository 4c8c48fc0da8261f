"""What is asleep is zero, stays zero and costs nothing; growing keeps the function."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import ParallelScalingBlock
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.models import elastic
from deit_tract.models.precision import explicit_attention
from deit_tract.models.token_drop import set_tokens
from deit_tract.optim.build import build_optimizer, clip_gradients
from deit_tract.plan.cost import measure
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.elastic import NETS, small

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LANE = ["batch.size=1", "batch.lanes=1", "precision.autocast=null"]


@pytest.fixture(params=NETS)
def plain(request) -> nn.Module:
    return small(request.param)


def gradients(net: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of all parameters: None would be an unused one."""
    out = net(IMAGES)
    out.square().sum().backward()
    return out, {name: parameter.grad for name, parameter in net.named_parameters()}


def narrow(net: nn.Module, heads: float = 1 / 3, hidden: float = 1 / 4) -> nn.Module:
    net = copy.deepcopy(net)
    elastic.prepare(net)
    elastic.set_rates(net, heads, hidden)
    elastic.put_to_sleep(net)
    return net


def test_at_full_rates_forward_and_gradients_are_timms_to_the_bit(plain):
    net = copy.deepcopy(plain)
    elastic.prepare(net)
    expected, theirs = gradients(plain)
    out, ours = gradients(net)
    assert torch.equal(out, expected)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(net.state_dict()) == list(plain.state_dict())


def test_what_is_asleep_is_left_out_of_the_forward_and_has_zero_gradient(plain):
    net = narrow(plain)
    asleep = elastic.asleep(net)
    assert sum(name.endswith("relative_position_bias_table") for name in asleep) == (
        3 if "Swin" in type(net).__name__ else 0
    )
    with torch.no_grad():
        for name, part in asleep.items():
            net.get_parameter(name).masked_fill_(part.mask, float("nan"))
    out, grads = gradients(net)
    assert torch.isfinite(out).all()
    for name, grad in grads.items():
        kept = torch.ones(grad.shape) if name not in asleep else ~asleep[name].mask
        assert torch.equal(grad, torch.where(kept.bool(), grad, 0.0)), name
        if name.endswith("weight"):
            assert (grad != 0).float().mean() > 0.7 * kept.expand(grad.shape).float().mean(), name


def test_the_plain_model_with_the_same_weights_computes_the_same(plain):
    net = narrow(plain)
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=0, atol=1e-6)
    with elastic.full_rates(net):
        assert torch.equal(net(IMAGES), plain(IMAGES))
        assert not elastic.asleep(net)
    assert elastic.asleep(net)
    explicit_attention(net)
    torch.testing.assert_close(net(IMAGES), plain(IMAGES), rtol=0, atol=1e-5)


def test_waking_keeps_the_function_and_gives_start_values(plain):
    """Of the model and of its EMA, whose other entries are those of another step."""
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    net = narrow(plain)
    ema = copy.deepcopy(net)
    with torch.no_grad():
        next(ema.parameters()).mul_(1.5)
    before = [net(IMAGES), ema(IMAGES)]
    first = elastic.asleep(net)
    for rates in ((2 / 3, 1 / 2), (1.0, 1.0)):
        elastic.wake(net, *rates, start, ema.state_dict())
        elastic.set_rates(ema, *rates)
        for model, expected in zip((net, ema), before, strict=True):
            torch.testing.assert_close(model(IMAGES), expected, rtol=0, atol=1e-6)
    assert not elastic.asleep(net)
    for name, part in first.items():
        expected = torch.where(part.mask, start[name], 0) if part.computes else torch.zeros(())
        for model in (net, ema):
            value = torch.where(part.mask, model.get_parameter(name), 0)
            assert torch.equal(value, expected.expand_as(value)), name


def test_numbers_of_awake_heads_and_hidden_units():
    assert [elastic.awake_heads(1 / 3, heads) for heads in (1, 2, 5, 8)] == [1, 1, 2, 3]
    assert [elastic.awake_heads(2 / 3, heads) for heads in (1, 2, 5, 8)] == [1, 2, 4, 6]
    assert [elastic.awake_heads(rate, 6) for rate in (1e-9, 1 / 3, 1.0)] == [1, 2, 6]
    assert [elastic.awake_hidden(1 / 4, units) for units in (768, 40, 36, 4)] == [192, 16, 16, 4]
    assert [elastic.awake_hidden(1.0, units) for units in (768, 36)] == [768, 36]


class SmallAttention(Attention):
    """timm's attention with a third of the heads, each as wide as before."""

    def __init__(self, dim: int, num_heads: int, **others):
        super().__init__(dim, num_heads // 3, attn_head_dim=dim // num_heads, **others)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_twenty_steps_equal_those_of_a_smaller_vit_to_the_bit(name):
    """With clipping and an EMA; all zeros stay zeros, in the optimizer's moments too."""
    net = narrow(small("ViT"))
    less = small("ViT", mlp_ratio=1, attn_layer=SmallAttention)
    asleep = elastic.asleep(net)
    shapes = {key: value.shape for key, value in less.named_parameters()}

    def awake(key: str, value: Tensor) -> Tensor:
        kept = ~asleep[key].mask.expand(value.shape) if key in asleep else value == value
        return value[kept].view(shapes[key])

    less.load_state_dict({key: awake(key, value) for key, value in net.state_dict().items()})
    keys = [f"optim.name={name}", "optim.lr=0.01", "optim.clip_grad=1", "optim.first_layer=null"]
    optim = load_recipe("quickstart", keys).optim
    optimizers = [build_optimizer(optim, model) for model in (net, less)]
    ema = ModelEmaV3(net, decay=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        images = torch.randn(2, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (2,), generator=generator)
        for model, optimizer in zip((net, less), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            assert clip_gradients(optim, model) > 1
            optimizer.step()
        ema.update(net)
    theirs = dict(less.named_parameters())
    for key, value in net.named_parameters():
        assert torch.equal(awake(key, value), theirs[key]), key
    for key, part in asleep.items():
        value = net.get_parameter(key)
        moments = [state for state in optimizers[0].state[value].values()
                   if torch.is_tensor(state) and state.shape == value.shape]  # fmt: skip
        assert moments
        for tensor in (value, ema.module.get_parameter(key), value.grad, *moments):
            assert not torch.where(part.mask, tensor, 0).any(), key


def test_the_cost_of_stages_is_the_closed_form_and_gives_the_published_budgets():
    """Xia et al. (ICLR 2023), slides: epochs of DeiT-Ti's three stages and their GMACs."""
    with torch.device("meta"):
        net = timm.create_model("deit_tiny_patch16_224")
    elastic.prepare(net)
    keys = ["model.name=deit_tiny_patch16_224", "data.image_size=224", "model.drop_path=0"]
    recipe = load_recipe("vit_s_800ep", [*keys, *LANE])
    costs = []
    for heads, hidden, patches in ((1 / 3, 1 / 4, 100), (2 / 3, 1 / 2, 144), (1, 1, 196)):
        elastic.set_rates(net, heads, hidden)
        set_tokens(net, patches)
        tokens, inner, units = patches + 1, heads * 192, hidden * 768
        block = 4 * tokens * 192 * inner + 2 * tokens**2 * inner + 2 * tokens * 192 * units
        costs.append(196 * 768 * 192 + 12 * block + 192 * 1000)
        assert measure(recipe, net).forward == 2 * round(costs[-1])
    for epochs, budget in (((11, 15, 17), 31.4), ((8, 24, 39), 63.23), ((22, 51, 127), 190.85)):
        spent = sum(count * cost for count, cost in zip(epochs, costs, strict=True))
        assert spent / 1e9 == pytest.approx(budget, rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlp_layer": timm.layers.SwiGLU}, r"blocks.0 of VisionTransformer .*has SwiGLU"),
        ({"scale_attn_norm": True}, "a gate, or a norm over all heads"),
        ({"scale_mlp_norm": True}, "a norm over all hidden units"),
        ({"block_fn": ParallelScalingBlock}, r"\(a ParallelScalingBlock\); set it and"),
    ],
)
def test_a_vit_that_cannot_be_cut_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        elastic.prepare(small("ViT", depth=1, **arguments))


def test_other_models_are_refused():
    with pytest.raises(UserError, match=r"curriculum.heads: ResNet cannot be cut, only timm's ViT"):
        elastic.prepare(timm.create_model("test_resnet"))
