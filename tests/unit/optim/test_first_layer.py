"""Adam, weight decay on every parameter, and the first layer with SGD of its own."""

import copy

import pytest
import torch
from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.optim.build import build_optimizer, set_lr
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import FirstLayer, Optim
from deit_tract.tract.first_layer import first_layer_name

PAIR = Optim(name="adam", lr=1e-2, weight_decay=0.1, first_layer=FirstLayer(lr=0.08, momentum=0.9))


def small_cnn(**settings) -> nn.Module:
    return build_model(
        load_recipe(
            "cifar10_cnn_8ep_sgd", [f"model.{key}={value}" for key, value in settings.items()]
        )
    )


def steps(
    net: nn.Module, optimizer: torch.optim.Optimizer, count: int, rates=(1e-2, 7e-3, 4e-3, 1e-3)
) -> None:
    """So many steps on made gradients, at falling rates."""
    for number, rate in zip(range(count), rates, strict=False):
        set_lr(optimizer, rate)
        generator = torch.Generator().manual_seed(number)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()


def expected(net: nn.Module, count: int, rates=(1e-2, 7e-3, 4e-3, 1e-3)) -> dict:
    """The same by torch's two optimizers, each told its own rate."""
    first = net.conv1.weight
    decayed = [p for p in net.parameters() if p.ndim > 1 and p is not first]
    others = [p for p in net.parameters() if p.ndim <= 1]
    sgd = torch.optim.SGD([first], lr=1.0, momentum=0.9)
    adam = torch.optim.Adam([{"params": others}, {"params": decayed, "weight_decay": 0.1}], lr=1.0)
    for number, rate in zip(range(count), rates, strict=False):
        sgd.param_groups[0]["lr"] = 8 * rate  # 0.08 for 1e-2
        for group in adam.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(number)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        sgd.step()
        adam.step()
    return net.state_dict()


@pytest.mark.parametrize("tract", ["0.1", "null"])
def test_the_first_layer_has_sgd_and_the_others_adam_on_one_schedule(tract):
    net = small_cnn(tract=tract)
    reference = copy.deepcopy(net)
    steps(net, build_optimizer(PAIR, net), 4)
    for key, value in expected(reference, 4).items():
        torch.testing.assert_close(net.state_dict()[key], value)


def test_the_pair_goes_on_from_its_state():
    net = small_cnn()
    optimizer = build_optimizer(PAIR, net)
    steps(net, optimizer, 2)
    other = copy.deepcopy(net)
    resumed = build_optimizer(PAIR, other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, own in ((net, optimizer), (other, resumed)):
        steps(each, own, 2, rates=(4e-3, 1e-3))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert {group["lr"] for group in resumed.param_groups} == {8e-3, 1e-3}


def test_where_there_is_no_single_first_layer_it_is_refused():
    with pytest.raises(
        UserError, match=r"optim.first_layer: Identity has no single first layer; set it to null"
    ):
        build_optimizer(PAIR, nn.Identity())
    net = small_cnn()
    assert first_layer_name(net) == "conv1" and type(net.conv1) is nn.Conv2d


def test_adam_decays_by_the_gradient_and_adamw_apart():
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        built = build_optimizer(
            Optim(name=name, lr=1e-3, weight_decay=5e-5, decay_all=True), small_cnn()
        )
        assert type(built) is kind and [group["weight_decay"] for group in built.param_groups] == [
            5e-5
        ]


def test_decay_all_means_all():
    net = build_model(load_recipe("cifar10_vit_100ep"))
    groups = build_optimizer(load_recipe("cifar10_vit_100ep").optim, net).param_groups
    assert (
        sum(p.numel() for group in groups if group["weight_decay"] == 5e-5 for p in group["params"])
        == 6_268_810
    )
    usual = build_optimizer(Optim(name="adam", lr=1e-3, weight_decay=5e-5), net).param_groups
    assert (
        sum(p.numel() for group in usual if group["weight_decay"] for p in group["params"])
        < 6_250_000
    )
