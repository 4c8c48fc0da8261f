"""The CIFAR models: the paper's sizes and functions, and TrAct on their first layer."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.models import cifar
from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import load_recipe


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("vit_cifar", 10, 6_268_810),  # the paper's, counted in ViT-CIFAR
        ("vit_cifar", 100, 6_268_810 + 90 * 385),
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet18_cifar", 100, 11_220_132),
        ("cifar_cnn", 10, 174_274),
    ],
)
def test_parameters(name, classes, parameters):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=classes)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(
    ("recipe", "layer", "kind"),
    [
        ("cifar10_vit_100ep", "patch_embed.proj", nn.Conv2d),
        ("cifar10_vit_100ep_dualpatchnorm", "patch_embed.proj", nn.Conv2d),
        ("cifar10_resnet18_sgd_100ep", "conv1", nn.Conv2d),
        ("cifar10_cnn_8ep_sgd", "conv1", nn.Conv2d),
    ],
)
def test_tract_stands_on_the_first_layer_and_the_weights_keep_their_names(recipe, layer, kind):
    plain = build_model(load_recipe(recipe))
    ours = build_model(load_recipe(recipe, ["model.tract=0.1"]))
    assert [name for name, _ in tract.find(ours)] == [layer] and type(
        plain.get_submodule(layer)
    ) is kind
    assert list(ours.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.eval()(images), plain.eval()(images))


# ---- the convolutional networks ------------------------------------------------------------------


def sizes(net: nn.Module, *layers: str) -> list[tuple]:
    """Shapes (channels, height, width) that layers see."""
    seen = []
    for name in layers:
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, x: seen.append(tuple(x[0].shape[1:]))
        )
    net(torch.zeros(2, 3, 32, 32))
    return seen


def test_resnet18_is_torchvisions_behind_another_stem():
    ours, theirs = timm.create_model("resnet18_cifar").eval(), resnet18(num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())  # strictly
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))
    assert sizes(ours, "maxpool", "layer1", "layer2", "layer4", "fc")[:4] == [
        (64, 32, 32), (64, 16, 16), (64, 16, 16), (256, 4, 4)]  # fmt: skip


def test_convolutions_start_from_the_fan_out():
    net = timm.create_model("resnet18_cifar")
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000:
            fan_out = layer.out_channels * math.prod(layer.kernel_size)
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05), (
                name
            )
    assert all(
        layer.weight.eq(1).all() for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)
    )


def test_the_cnn_has_the_described_stages():
    net = timm.create_model("cifar_cnn")
    assert sizes(net, "maxpool", "layer1", "layer2", "layer3", "avgpool") == [
        (24, 32, 32), (24, 16, 16), (24, 16, 16), (48, 8, 8), (96, 4, 4)]  # fmt: skip
    assert [len(net.get_submodule(stage)) for stage in net.stages] == [1, 1, 1]


# ---- the vision transformer ----------------------------------------------------------------------


def vit_cifar_written_out(weights: dict, images: torch.Tensor) -> torch.Tensor:
    """ViT-CIFAR's forward as its source states it: 8 x 8 words of 48 numbers (row, column,
    channel), 12 heads.
    """
    batch = len(images)
    words = images.reshape(batch, 3, 8, 4, 8, 4).permute(0, 2, 4, 3, 5, 1).reshape(batch, 64, 48)
    embed = weights["patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(384, 48)
    x = words @ embed.T + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"].expand(batch, -1, -1), x], 1) + weights["pos_embed"]
    for number in range(7):
        w = {key.removeprefix(f"blocks.{number}."): value for key, value in weights.items()}
        h = F.layer_norm(x, (384,), w["norm1.weight"], w["norm1.bias"])
        q, k, v = (h @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).split(384, -1)
        heads = []
        for head in range(12):
            part = slice(32 * head, 32 * head + 32)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(384)
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        h = F.layer_norm(x, (384,), w["norm2.weight"], w["norm2.bias"])
        h = F.gelu(h @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
        x = x + F.gelu(h @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])
    x = F.layer_norm(x[:, 0], (384,), weights["norm.weight"], weights["norm.bias"])
    return x @ weights["head.weight"].T + weights["head.bias"]


def test_the_vit_is_vit_cifar():
    net, images = timm.create_model("vit_cifar").double().eval(), torch.randn(3, 3, 32, 32).double()
    with torch.no_grad():
        torch.testing.assert_close(net(images), vit_cifar_written_out(net.state_dict(), images))
        usual = timm.create_model(
            "vit_small_patch16_224",
            img_size=32,
            patch_size=4,
            depth=7,
            num_heads=12,
            mlp_ratio=1,
            num_classes=10,
            norm_layer=nn.LayerNorm,
        )
        usual.load_state_dict(net.state_dict())  # the same weights, another function
        assert (usual.double().eval()(images) - net(images)).abs().max() > 0.01


def test_the_vits_start_values():
    net = timm.create_model("vit_cifar")
    assert net.pos_embed.std().item() == pytest.approx(1, abs=0.03)
    assert net.cls_token.std().item() == pytest.approx(1, abs=0.15)
    for layer in (net.patch_embed.proj, net.blocks[0].attn.qkv, net.blocks[6].mlp.fc2, net.head):
        bound = 1 / math.sqrt(layer.weight[0].numel())  # nn.Linear's
        assert 0.98 * bound < layer.weight.abs().max() <= bound and layer.bias.abs().max() <= bound


@pytest.mark.parametrize("kind", ["input", "dual"])
def test_normalised_patches_do_not_see_their_brightness_and_contrast(kind):
    embed, plain = (
        timm.create_model("vit_cifar", depth=1, **args).patch_embed
        for args in ({"patch_norm": kind}, {})
    )
    image = torch.randn(1, 3, 32, 32)
    other = image.clone()
    other[..., :4, 4:8] = 3 * other[..., :4, 4:8] + 5  # one patch
    with torch.no_grad():
        torch.testing.assert_close(embed(other), embed(image), atol=1e-4, rtol=1e-4)
        changed = (plain(other) - plain(image)).abs().amax(-1)[0]
        assert changed.argmax() == 1 and changed[1] > 1


def test_dual_patch_norm_is_layer_norm_before_and_after():
    embed = timm.create_model("vit_cifar", depth=1, patch_norm="dual").patch_embed
    for p in (*embed.before.parameters(), *embed.after.parameters()):
        nn.init.normal_(p)
    image = torch.randn(1, 3, 32, 32)
    patch = image[0, :, 8:12, 4:8].flatten()  # row 2, column 1
    patch = F.layer_norm(patch, (48,), embed.before.weight, embed.before.bias)
    row = F.layer_norm(
        embed.proj.weight.flatten(1) @ patch + embed.proj.bias,
        (384,),
        embed.after.weight,
        embed.after.bias,
    )
    torch.testing.assert_close(embed(image)[0, 2 * 8 + 1], row, atol=1e-5, rtol=1e-4)
    assert not list(
        timm.create_model("vit_cifar", depth=1, patch_norm="input").patch_embed.before.parameters()
    )


def test_an_unknown_patch_norm_is_refused():
    with pytest.raises(
        UserError, match=r"model.args: .*patch_norm is 'input', 'dual' or null, not 'both'"
    ):
        build_model(load_recipe("cifar10_vit_100ep", ["model.args.patch_norm=both"]))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cifar_cnn", {}),
        ("resnet18_cifar", {}),
        ("vit_cifar", {}),
        ("cifar_net", {"net": "mobilenetv2"}),
        ("cifar_net", {"net": "vgg11"}),
    ],
)
def test_they_say_of_themselves_what_timms_models_do(name, args):
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7, **args)
    last = net.get_submodule(net.pretrained_cfg["classifier"])
    assert (
        (net.num_features, net.num_classes)
        == (last.in_features, last.out_features)
        == (last.in_features, 7)
    )
    assert isinstance(net.get_submodule(net.pretrained_cfg["first_conv"]), nn.Conv2d)


def test_names_are_not_timms():
    """timm would warn and we would shadow, should it have models of these names one day."""
    names = [name for name in cifar.__all__ if name.islower()]
    modules = {timm.models.model_entrypoint(name).__module__ for name in names}
    assert len(names) == 4
    assert modules == {f"{cifar.__name__}.{file}" for file in ("vit", "resnet", "nets")}
