"""A wrapped layer keeps everything else as it was; what cannot be wrapped is refused."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from deit_tract import tract
from deit_tract.tract import TrAct
from tests.helpers.tract import error, expected, weight_gradient


def test_wrapping_keeps_everything():
    layer = nn.Conv2d(3, 8, 3).double().eval()
    layer.mark, calls = "mine", []
    layer.register_forward_hook(lambda *_: calls.append(1))
    weight, bias, keys, state = (
        layer.weight,
        layer.bias,
        list(layer.state_dict()),
        torch.get_rng_state(),
    )
    model = nn.Sequential(layer, nn.ReLU())
    wrapped = TrAct(layer)
    assert wrapped is layer and isinstance(layer, nn.Conv2d) and model[0] is layer
    assert layer.weight is weight and layer.bias is bias and list(layer.state_dict()) == keys
    assert layer.mark == "mine" and not layer.training and layer.weight.dtype == torch.float64
    model(torch.randn(1, 3, 5, 5).double())
    assert calls == [1]
    torch.set_rng_state(state)
    TrAct(nn.utils.skip_init(nn.Linear, 3, 4), gram="batch")
    assert torch.equal(torch.get_rng_state(), state)
    assert [id(p) for p in layer.parameters()] == [id(weight), id(bias)] and not list(
        layer.buffers()
    )


@pytest.mark.parametrize("gram", ["lane", "batch"])
def test_copies(gram):
    layer, x = TrAct(nn.Conv2d(3, 8, 3), 0.3, gram=gram), torch.randn(2, 3, 9, 9)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert type(other) is type(layer) and other.lam == 0.3 and other.gram == gram
        other(x).sum().backward()
        tract.finish_step(other)
    assert len(pickle.dumps(layer)) < len(pickle.dumps(nn.Conv2d(3, 8, 3))) + 2000
    fresh = nn.Conv2d(3, 8, 3)
    fresh.load_state_dict(layer.state_dict())
    layer.load_state_dict(fresh.state_dict())


def test_lam_is_shown_and_can_be_set():
    layer, x = TrAct(nn.Linear(6, 3), lam=0.25), torch.randn(20, 6)
    assert "lam=0.25" in repr(layer) and "gram" not in repr(layer)
    assert "gram=batch" in repr(TrAct(nn.Conv2d(1, 1, 1), gram="batch"))
    layer.lam = 0.5
    g = torch.randn(20, 3)
    assert error(weight_gradient(layer, x, g), expected(layer, x, g, 0.5)) < 2e-5


def test_wrapping_twice():
    layer = TrAct(nn.Linear(6, 3), l=0.2, max_bytes=5)
    assert TrAct(layer) is layer and (layer.lam, layer.max_bytes, layer.gram) == (0.2, 5, "lane")
    TrAct(layer, 0.3)
    assert (layer.lam, layer.max_bytes) == (0.3, 5)
    TrAct(layer, gram="batch")
    assert (layer.lam, layer.gram) == (0.3, "batch") and "gram_sum" in vars(layer)
    TrAct(layer, gram="lane")
    assert layer.gram == "lane" and "gram_sum" not in vars(layer)


def test_no_gradient_no_work():
    layer = TrAct(nn.Conv2d(3, 8, 3))
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.no_grad():
        assert layer(x).grad_fn is None
    layer.weight.requires_grad_(False)
    assert "Tract" not in str(layer(x).grad_fn) and "Side" not in str(
        layer(x).grad_fn.next_functions
    )
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and layer.bias.grad is not None


def test_shared_layer_adds_up():
    layer, x = TrAct(nn.Linear(6, 3)), torch.randn(2, 20, 6)
    (layer(x[0]).sum() + layer(x[1]).sum()).backward()
    ones = torch.ones(20, 3)
    want = expected(layer, x[0], ones, 0.1) + expected(layer, x[1], ones, 0.1)
    assert error(layer.weight.grad, want) < 2e-5


def test_no_second_derivative():
    layer = TrAct(nn.Linear(6, 3))
    (gradient,) = torch.autograd.grad(
        layer(torch.randn(20, 6)).square().sum(), layer.weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_meta_device():
    for layer, shape in ((nn.Conv2d(3, 8, 3), (4, 3, 9, 9)), (nn.Linear(60, 3), (5, 60))):
        layer = TrAct(layer.to("meta"))
        layer(torch.randn(shape, device="meta")).sum().backward()
        assert layer.weight.grad.shape == layer.weight.shape


# ---- refusals ------------------------------------------------------------------------------------


class OwnForward(nn.Conv2d):
    pass


def replaced_forward():
    layer = nn.Linear(3, 4)
    layer.forward = layer.forward
    return layer


def refused() -> dict:
    from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "StdConv2d": StdConv2d(3, 8, 3),
            "ScaledStdConv2d": ScaledStdConv2d(3, 8, 3),
            "Conv2dSame": Conv2dSame(3, 8, 3),
            "OwnForward": OwnForward(3, 8, 3),
            "LazyConv2d": nn.LazyConv2d(8, 3),
            "ParametrizedConv2d": parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
            "ParametrizedLinear": parametrizations.orthogonal(nn.Linear(3, 8)),
            "Conv2d": nn.utils.weight_norm(nn.Conv2d(3, 8, 3)),
            "Linear": replaced_forward(),
            "ConvTranspose2d": nn.ConvTranspose2d(3, 8, 3),
            "Embedding": nn.Embedding(3, 8),
            "Sequential": nn.Sequential(nn.Linear(3, 8)),
        }


def test_other_layers_are_refused_by_name():
    for name, layer in refused().items():
        kind = type(layer)
        with pytest.raises(TypeError, match=name):
            TrAct(layer)
        assert type(layer) is kind


def test_settings_out_of_range():
    layer = nn.Linear(3, 4)
    for lam in (0, -0.1, math.nan, math.inf, "0.1"):
        with pytest.raises(ValueError, match="lam must be"):
            TrAct(layer, lam)
        with pytest.raises(ValueError, match="lam must be"):
            TrAct(layer, l=lam)
    for options in ({"gram": "global"}, {"gram_dtype": torch.bfloat16}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TrAct(layer, **options)
    with pytest.raises(TypeError, match="two names"):
        TrAct(layer, 0.1, l=0.2)
    assert type(layer) is nn.Linear and "lam" not in vars(layer)


def test_frozen_weight_warns():
    with pytest.warns(UserWarning, match="frozen"):
        TrAct(nn.Linear(3, 4).requires_grad_(False))


def test_remove():
    net = nn.Sequential(TrAct(nn.Conv2d(3, 4, 3), 0.2, gram="batch"), TrAct(nn.Linear(3, 4)))
    before = list(vars(nn.Conv2d(3, 4, 3)))
    assert tract.remove(net) is net and tract.find(net) == []
    assert type(net[0]) is nn.Conv2d and type(net[1]) is nn.Linear and list(vars(net[0])) == before


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gram", ["lane", "batch"])
def test_activation_checkpointing(gram, reentrant):
    layer, x = (
        TrAct(nn.Conv2d(3, 8, 4, 4), gram=gram),
        torch.randn(4, 3, 16, 16, requires_grad=True),
    )
    g = torch.randn(4, 8, 4, 4)
    checkpoint(layer, x, use_reentrant=reentrant).backward(g)
    tract.finish_step(layer)
    assert error(layer.weight.grad, expected(layer, x, g, 0.1)) <= 2e-5


def test_saved_input_changed_in_place_is_noticed():
    layer, x = TrAct(nn.Linear(6, 3)), torch.randn(20, 6)
    z = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
