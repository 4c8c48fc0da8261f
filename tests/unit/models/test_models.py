"""Models: TrAct on the first layer only, drop path from given draws, weights loaded strictly."""

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import DropPath as TimmDropPath
from torch import nn
from torchvision import models as torchvision_models

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.models.build import build_model, timm
from deit_tract.models.drop_path import DropPath, draw_drop_path, set_drop_path
from deit_tract.models.weights import load_weights
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Model


def build(*overrides: str) -> nn.Module:
    return build_model(load_recipe("quickstart", overrides))


def test_tract_stands_on_the_first_layer_and_nothing_else_differs():
    with_tract, without = build(), build("model.tract=null")
    assert type(without.patch_embed.proj) is nn.Conv2d
    assert type(with_tract.patch_embed.proj) is not nn.Conv2d and isinstance(
        with_tract.patch_embed.proj, nn.Conv2d
    )
    changed = [name for name, layer in with_tract.named_modules()
               if type(layer) is not type(without.get_submodule(name))]  # fmt: skip
    assert changed == ["patch_embed.proj"]
    ours, plain = with_tract.state_dict(), without.state_dict()
    assert list(ours) == list(plain) and all(torch.equal(ours[key], plain[key]) for key in ours)


def test_tract_on_a_first_layer_that_is_no_plain_one_is_refused():
    model = Model(name="resnetv2_50x1_bit", tract=0.1)
    with pytest.raises(UserError, match=r"model.tract: TrAct takes exactly .*StdConv2d"):
        build_model(load_recipe("quickstart").model_copy(update={"model": model}))


def test_forward_is_bit_identical_and_only_the_first_weights_gradient_differs():
    images = torch.rand(16, 1, 8, 8)
    grads = []
    for model in (build("model.drop_path=0"), build("model.drop_path=0", "model.tract=null")):
        out = model(images)
        out.square().sum().backward()
        grads.append((out, {name: p.grad for name, p in model.named_parameters()}))
    (out, ours), (expected, plain) = grads
    assert torch.equal(out, expected)
    assert [name for name in plain if not torch.equal(ours[name], plain[name])] == [
        "patch_embed.proj.weight"
    ]


def test_initialisation_follows_the_seed_not_the_global_state():
    torch.rand(5)
    first, again, other = build(), build(), build("seed=1")
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_drop_path_has_one_rate_in_every_block():
    layers = [
        layer for layer in build("model.drop_path=0.3").modules() if isinstance(layer, DropPath)
    ]
    assert len(layers) == 6 and {layer.rate for layer in layers} == {0.3}
    assert not [
        layer for layer in build("model.drop_path=0").modules() if isinstance(layer, DropPath)
    ]


def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean():
    layers = [DropPath(0.3), DropPath(0.3)]
    x = torch.ones(2000, 4, 5)
    draw_drop_path(layers, 2000, seed=3, device=torch.device("cpu"))
    first, second = (layer(x) for layer in layers)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (first.flatten(1).std(1) == 0).all() and not torch.equal(first, second)
    assert abs((first[:, 0, 0] == 0).float().mean() - 0.3) < 0.04
    draw_drop_path(layers, 2000, seed=3, device=torch.device("cpu"))
    assert torch.equal(layers[0](x), first), "the seed decides"
    layers[0].eval()
    assert layers[0](x) is x


def test_drop_path_is_refused_where_there_is_none():
    with torch.device("meta"):
        model = timm.create_model("vgg11")
    with pytest.raises(UserError, match="VGG has no drop path"):
        set_drop_path(model, 0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=vit_tinyy", "timm has no model 'vit_tinyy'"),
        ("model.args.dept=3", "timm cannot build"),
        ("model.args.num_heads=5", "timm cannot build"),
        ("model.args.patch_size=3", ""),
    ],
)
def test_what_timm_cannot_build_is_one_line(override, message):
    if not message:
        assert build(override).patch_embed.proj.kernel_size == (3, 3)
        return
    with pytest.raises(UserError, match=message):
        build(override)


def test_weights_come_back_and_anything_else_is_refused(tmp_path):
    model, other = build("seed=1"), build()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        fresh = build()
        load_weights(fresh, str(tmp_path / name))
        assert all(
            torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True)
        )
    state = model.state_dict()
    cases = {
        "lacks head.bias": {key: value for key, value in state.items() if key != "head.bias"},
        "has unexpected extra": {**state, "extra": torch.zeros(1)},
        "has other shapes for head.weight": {**state, "head.weight": torch.zeros(3, 64)},
    }
    for message, weights in cases.items():
        save_file(weights, tmp_path / "b.safetensors")
        with pytest.raises(UserError, match=message):
            load_weights(other, str(tmp_path / "b.safetensors"))
    (tmp_path / "c.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(other, str(tmp_path / "c.pth"))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_the_imagenet_resnets_are_torchvisions_to_the_bit(depth):
    """Their names, start values from one seed, and logits."""
    recipe = load_recipe(f"resnet{depth}_60ep")
    ours = build_model(recipe)
    seed_generators(derive(recipe.seed, "init"))
    theirs = getattr(torchvision_models, f"resnet{depth}")()
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(image), theirs.eval()(image))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 4}),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 2, 1]}),
        ("pvt_v2_b0", {}),
    ],
)
def test_rising_drop_path_has_timms_rates_and_leaves_start_values(name, arguments):
    """timm's own modules with drop_path_rate, in order; blocks of rate 0 draw nothing."""
    small = load_recipe("quickstart")
    data = small.data.model_copy(update={"image_size": 224})

    def built(**values):
        settings = Model(name=name, args=arguments, **values)
        return build_model(small.model_copy(update={"model": settings, "data": data}))

    ours = built(drop_path=0.3, drop_path_rule="rising")
    plain = built()
    theirs = timm.create_model(name, drop_path_rate=0.3, **arguments)
    expected = [m.drop_prob for m in theirs.modules() if isinstance(m, TimmDropPath)]
    rates = [layer.rate for layer in ours.modules() if isinstance(layer, DropPath)]
    assert rates == expected and max(rates) == pytest.approx(0.3) and len(set(rates)) > 2
    assert all(map(torch.equal, ours.state_dict().values(), plain.state_dict().values()))


def test_each_rising_layer_drops_at_its_own_rate():
    layers = [DropPath(rate) for rate in (0.1, 0.5)]
    draw_drop_path(layers, 20_000, 0, torch.device("cpu"))
    for layer in layers:
        kept = layer.scale > 0
        assert kept.float().mean().item() == pytest.approx(1 - layer.rate, abs=0.02)
        assert torch.allclose(layer.scale[kept], torch.tensor(1 / (1 - layer.rate)))
