"""Random erasing: timm's boxes for equal draws, normal noise, the same bits however it is made."""

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from deit_tract.common.seeds import seed_generators
from deit_tract.data.feed import Source, make_feed
from deit_tract.data.sets.load import load_splits
from deit_tract.data.stream import Stream
from deit_tract.data.transforms import augment, erase, fast
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.images import noise

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 32), (20, 60)])
def test_boxes_are_timms_for_the_same_state_of_random(height, width):
    theirs = RandomErasing(0.25, mode="pixel", device="cpu")
    erased = 0
    for seed in range(400):
        random.seed(seed)
        changed = theirs(torch.full((1, height, width), 9.0))[0] != 9
        random.seed(seed)
        top, bottom, left, right, _ = erase.draw(0.25, height, width)
        expected = torch.zeros(height, width, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(changed, expected), seed
        erased += bottom > 0
    assert 75 <= erased <= 125, erased
    same = [erase.draw(0.5, height, width, random.Random(7)) for _ in range(2)]
    random.seed(7)
    assert same[0] == same[1] == erase.draw(0.5, height, width)


def test_noise_is_the_split_mix_generator_through_normal_quantiles():
    def bits(seed: int, place: int) -> int:
        """SplitMix64 (Steele, Lea and Flood, 2014) in Python's integers."""
        state = (seed + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    images = torch.zeros(3, 3, 6, 7)
    seed = 2**63 - 5
    boxes = torch.tensor([erase.NO_BOX, (1, 5, 2, 7, seed), (0, 1, 0, 1, 0)])
    assert erase.apply(images, boxes) is images
    assert not images[0].any() and images[2].count_nonzero() == 3
    table = torch.special.ndtri((torch.arange(65536, dtype=torch.float64) + 0.5) / 65536)
    expected = torch.zeros(3, 6, 7)
    for row in range(1, 5):
        for column in range(2, 7):
            number = bits(seed, row * 7 + column)
            for channel in range(3):
                expected[channel, row, column] = table[number >> 16 * channel & 65535].float()
    assert torch.equal(images[1], expected)


def test_noise_is_normal_and_independent_between_channels_pixels_and_seeds():
    side = 200
    boxes = torch.tensor([(0, side, 0, side, seed) for seed in (1, 2, 2**62)])
    values = erase.apply(torch.zeros(3, 3, side, side), boxes).double()
    count = values.numel()
    assert abs(values.mean()) < 4 / count**0.5
    assert abs(values.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / count) ** 0.5
    flat = values.flatten(2).flatten(0, 1)
    rows = [flat, flat[:, 1:], flat[:, :-1], values.transpose(2, 3).flatten(2).flatten(0, 1)]
    between = torch.corrcoef(torch.cat([rows[0], rows[3]])) - torch.eye(18)
    assert between.abs().max() < 5 / side
    assert abs((rows[1] * rows[2]).mean()) < 4 / count**0.5


SETTINGS = ["augment.random_erase=0.5", "data.image_size=48", "augment.crop_scale=null"]


def test_every_pipeline_erases_the_same_pixels():
    recipe = load_recipe("vit_s_800ep", SETTINGS)
    exact = augment.train_transform(recipe)
    parts = augment.TrainTransform(recipe)
    quick, deferred = (fast.FastTransform(recipe, defer) for defer in (False, True))
    expected, found = [], {parts: [], quick: [], deferred: []}
    for seed in range(24):
        image = noise((48, 48), seed=seed)
        seed_generators(seed)
        expected.append(exact(image))
        for transform, samples in found.items():
            seed_generators(seed)
            samples.append(transform(image if transform is parts else np.array(image)))
    expected = torch.stack(expected)
    for transform, samples in found.items():
        batch = {name: torch.stack([one[name] for one in samples]) for name in samples[0]}
        assert torch.equal(transform.finish(batch.pop("image"), **batch), expected)
    plain = load_recipe("vit_s_800ep", [*SETTINGS, "augment.random_erase=0"])
    seed_generators(0)
    pixels = augment.TrainTransform(plain)(noise((48, 48)))
    assert torch.is_tensor(pixels), "without erasing a sample is its pixels, as it was"


def test_workers_lanes_and_the_sharing_of_images_change_nothing():
    recipe = load_recipe(
        "quickstart", ["data.name=synthetic", "data.image_size=16", "augment.random_erase=0.5"]
    )
    images = load_splits(recipe.data).train
    stream = Stream(len(images), lanes=2, lane_size=12, repeats=3, seed=7)
    source = Source(images, augment.TrainTransform(recipe))
    alone = Source(images, augment.train_transform(recipe))
    one_by_one = [
        next(make_feed(alone, stream, [lane], 0, CPU).batches([5]))["image"] for lane in range(2)
    ]
    together = make_feed(source, stream, range(2), 2, CPU).batches([5])
    assert all(
        torch.equal(ours["image"], theirs)
        for ours, theirs in zip(together, one_by_one, strict=True)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_same_noise():
    boxes = torch.tensor([erase.draw(1, 50, 40, random.Random(seed)) for seed in range(64)])
    ours = erase.apply(torch.zeros(64, 3, 50, 40, device="cuda"), boxes)
    assert torch.equal(ours.cpu(), erase.apply(torch.zeros(64, 3, 50, 40), boxes))
