"""Dropped tokens: drawn for each lane from its seed, in training only, after TrAct's layer."""

import pytest
import torch

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.models.token_drop import draw_tokens, set_tokens
from tests.helpers.elastic import small
from tests.helpers.tract import error, expected

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_tokens(tokens: int | None):
    net = small("ViT", depth=1)
    set_tokens(net, tokens)
    return net


def test_lanes_draw_the_same_in_one_forward_and_in_several():
    layer = with_tokens(6).patch_drop
    draw_tokens([layer], 2, [5, 7], CPU)
    both = layer.kept
    assert both.shape == (4, 6) and (both.diff(dim=1) > 0).all() and both.max() < 16
    for lane, seed in enumerate((5, 7)):
        draw_tokens([layer], 2, seed, CPU)
        assert torch.equal(layer.kept, both[2 * lane : 2 * lane + 2])
    assert not torch.equal(both[:2], both[2:])


def test_every_patch_is_kept_equally_often():
    layer = with_tokens(4).patch_drop
    draw_tokens([layer], 4000, 0, CPU)
    counts = layer.kept.flatten().bincount(minlength=16)
    assert (counts - 1000).abs().max() < 140  # 5 standard deviations


def test_training_keeps_the_class_token_and_the_drawn_patches_evaluation_all():
    net, plain = with_tokens(6), small("ViT", depth=1)
    layer = net.patch_drop
    draw_tokens([layer], 4, 0, CPU)
    x = torch.randn(4, 17, 3)
    out = layer(x)
    assert torch.equal(out[:, 0], x[:, 0])
    for image, kept in enumerate(layer.kept):
        assert torch.equal(out[image, 1:], x[image, 1:][kept])
    assert torch.equal(net.eval()(IMAGES), plain.eval()(IMAGES))
    set_tokens(net, 16)
    assert torch.equal(net.train()(IMAGES), plain.train()(IMAGES)), "all patches"
    assert list(net.state_dict()) == list(plain.state_dict())


def test_tract_counts_all_patches_and_dropped_ones_send_no_gradient():
    net = with_tokens(6)
    layer = net.patch_embed.proj
    tract.TrAct(layer, 0.1)
    draw_tokens([net.patch_drop], 4, 0, CPU)
    sent = []

    def watch(_, __, out: torch.Tensor) -> None:
        out.register_hook(sent.append)

    handle = layer.register_forward_hook(watch)
    net(IMAGES).square().sum().backward()
    handle.remove()
    kept = torch.zeros(4, 16).scatter_(1, net.patch_drop.kept, 1.0).bool()
    assert torch.equal(sent[0].flatten(2).abs().sum(1) > 0, kept)
    assert error(layer.weight.grad, expected(layer, IMAGES, sent[0], 0.1)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "others", "tokens", "message"),
    [
        ("Swin", {}, 9, "curriculum.tokens: SwinTransformer cannot drop tokens, only timm's ViT"),
        ("ViT", {"class_token": False, "global_pool": "avg"}, 9, "with a class token; set it to"),
        ("ViT", {"patch_drop_rate": 0.5}, 9, "the model drops tokens already"),
        ("ViT", {}, 17, "17 tokens of 16 patches; give 1 to 16"),
    ],
)
def test_what_cannot_drop_tokens_is_refused(kind, others, tokens, message):
    with pytest.raises(UserError, match=message):
        set_tokens(small(kind, **others), tokens)
    assert set_tokens(small(kind, **others), None) is None
