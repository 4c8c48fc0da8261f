"""Mixup and cutmix: one draw a lane, targets that sum to one, a box that matches its share."""

import pytest
import torch

from deit_tract.data.transforms import mix
from deit_tract.recipe.settings.recipe import Mix

DEIT = Mix(mixup=0.8, cutmix=1.0)


def draws(settings: Mix, count: int = 2000, size: int = 32) -> list[mix.Draw]:
    return [mix.draw(settings, size, size, seed) for seed in range(count)]


def test_a_draw_follows_its_seed_alone():
    torch.rand(3)
    assert draws(DEIT, 50) == draws(DEIT, 50) and len(set(draws(DEIT, 50))) > 40


def test_half_is_cutmix_and_prob_leaves_the_rest_alone():
    kinds = draws(DEIT)
    assert 0.45 < sum(d.box is not None for d in kinds) / 2000 < 0.55
    rare = draws(Mix(mixup=0.8, prob=0.3))
    assert 0.25 < sum(d != mix.Draw() for d in rare) / 2000 < 0.35 and all(
        d.box is None for d in rare
    )
    assert all(d.box is not None for d in draws(Mix(cutmix=1.0), 100))
    assert set(draws(Mix(), 20)) == {mix.Draw()}


@pytest.mark.parametrize(("alpha", "variance"), [(0.8, 1 / (4 * 2.6)), (1.0, 1 / 12)])
def test_mixup_draws_from_the_beta_distribution(alpha, variance):
    keep = torch.tensor([d.keep for d in draws(Mix(mixup=alpha), 4000)])
    assert abs(keep.mean() - 0.5) < 0.02 and abs(keep.var() - variance) < 0.006


def test_keep_is_the_share_of_the_box_that_lies_inside():
    for draw in draws(Mix(cutmix=1.0), 300):
        top, bottom, left, right = draw.box
        assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 32
        assert draw.keep == pytest.approx(1 - (bottom - top) * (right - left) / 32**2)


def test_apply_pairs_an_image_with_its_mirror():
    images, labels = torch.rand(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 3])
    mixed, targets = mix.apply(mix.Draw(0.75), images, labels, 4)
    torch.testing.assert_close(mixed, 0.75 * images + 0.25 * images[[4, 3, 2, 1, 0]])
    assert targets[0].tolist() == [0.75, 0, 0, 0.25] and targets[2].tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(targets.sum(1), torch.ones(5))


def test_cutmix_pastes_the_box_and_leaves_the_input_alone():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    before = images.clone()
    mixed, targets = mix.apply(mix.Draw(0.75, (0, 4, 4, 8)), images, labels, 4)
    assert torch.equal(images, before)
    assert torch.equal(mixed[0, :, :4, 4:], images[3, :, :4, 4:])
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:4, 4:] = False
    assert torch.equal(mixed[..., mask], images[..., mask])
    assert targets[0].tolist() == [0.75, 0, 0, 0.25]
