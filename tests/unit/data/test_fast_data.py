"""The fast pipeline: what PIL and torchvision compute for the same draws, in any order of work."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from deit_tract.common.seeds import seed_generators
from deit_tract.data.sets.decode import Decoded
from deit_tract.data.sets.images import Folders
from deit_tract.data.transforms import augment, fast
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.images import as_tensor, noise

pil = v2.functional  # on PIL images it calls PIL
PLAIN = [
    "augment.three_augment=false",
    "augment.color_jitter=0",
    "data.mean=[0,0,0]",
    "data.std=[1,1,1]",
]


@pytest.fixture(scope="module")
def photos(real_images) -> Folders:
    return Folders(real_images("imagenet_samples_256.tar") / "train", "RGB")


# ---- resizing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "worst"), [("bicubic", 0.01), ("bilinear", 0.05)]
)  # of the values of one image
def test_a_resize_differs_by_two_levels_at_most_in_less_than_a_hundredth_of_the_values(
    photos, mode, worst
):
    interpolation, generator = v2.InterpolationMode(mode), random.Random(1)
    shares, tall = [], 0
    for index in range(0, 1000, 8):
        image = photos[index][0]
        width, height = (generator.randint(side // 5, side) for side in image.size)
        image = image.crop((0, 0, width, height))
        tall += height - 224 > max(0, 2 * (width - 224))
        expected = as_tensor(pil.resize(image, [224, 224], interpolation)).int()
        difference = (fast.resize(as_tensor(image), [224, 224], interpolation) - expected).abs()
        assert difference.max() <= 2, (index, width, height)
        shares.append((difference > 0).float().mean().item())
    assert tall > 5, "crops that PIL 13 shrinks in height first are among them"
    assert np.mean(shares) <= 0.01 and max(shares) <= worst, (np.mean(shares), max(shares))


def test_a_resize_of_the_shorter_side_has_torchvisions_size():
    for size in [(300, 200), (200, 301), (224, 500), (224, 224), (97, 31)]:
        image = noise(size)
        found = fast.resize(as_tensor(image), [224], v2.InterpolationMode.BICUBIC)
        expected = as_tensor(pil.resize(image, [224], v2.InterpolationMode.BICUBIC))
        assert found.shape == expected.shape
        assert (found.int() - expected.int()).abs().max() <= 2


# ---- the transform -------------------------------------------------------------------------------

SAME_SIZE = ["data.image_size=48", "augment.crop_scale=null", "augment.flip=0.5"]
RECIPES = {  # without a resize everything must be equal
    "3-Augment, jitter": ("vit_s_800ep", SAME_SIZE),
    "jitter alone": (
        "vit_s_800ep",
        [*SAME_SIZE, "augment.three_augment=false", "augment.color_jitter=0.4"],
    ),
    "3-Augment alone": ("vit_s_800ep", [*SAME_SIZE, "augment.color_jitter=0"]),
    "padded crop": ("vit_b_ft224_lamb", ["data.image_size=48"]),
    "RandAugment": ("vit_b_ft224", SAME_SIZE),
    "rotation, AutoAugment": ("cifar10_vit_100ep", ["data.image_size=48", "augment.rotate=15"]),
    "warp, grey": (
        "quickstart",
        ["data.image_size=48", "augment.three_augment=true", "augment.color_jitter=0.3"],
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_all_but_resizes_is_equal_for_equal_seeds(case):
    recipe = load_recipe(*RECIPES[case])
    exact = augment.train_transform(recipe)
    whole, deferred = (fast.FastTransform(recipe, defer) for defer in (False, True))
    images = [
        noise((48, 48), "RGB" if recipe.data.channels == 3 else "L", seed) for seed in range(60)
    ]
    halves = augment.TrainTransform(recipe)
    expected, found, left, first = [], [], [], []
    for seed, image in enumerate(images):
        array = np.array(image)
        for results, transform, source in (
            (expected, exact, image),
            (found, whole, array),
            (left, deferred, array),
            (first, halves, image),
        ):
            seed_generators(seed)
            results.append(transform(source))
    assert torch.equal(whole.finish(torch.stack(found)), torch.stack(expected))
    assert torch.equal(halves.finish(torch.stack(first)), torch.stack(expected))
    pixels, draws = (torch.stack([one[name] for one in left]) for name in ("image", "draws"))
    assert pixels.dtype == torch.uint8 and pixels.shape == (60, 48, 48, recipe.data.channels)
    assert torch.equal(deferred.finish(pixels, draws), torch.stack(expected))


def test_a_batch_is_finished_as_its_images_alone():
    recipe = load_recipe("vit_s_800ep", SAME_SIZE)
    transform, samples = fast.FastTransform(recipe, defer=True), []
    for seed in range(16):
        seed_generators(seed)
        samples.append(transform(np.array(noise((48, 48), seed=seed))))
    pixels, draws = (torch.stack([one[name] for one in samples]) for name in ("image", "draws"))
    alone = [transform.finish(one["image"][None], one["draws"][None])[0] for one in samples]
    before = pixels.clone()
    assert torch.equal(transform.finish(pixels, draws), torch.stack(alone)) and torch.equal(
        pixels, before
    )


@pytest.mark.parametrize("name", ["vit_s_800ep", "vit_b_ft224_lamb"])
def test_photos_are_cropped_and_flipped_alike(name, photos):
    recipe = load_recipe(name, PLAIN)
    exact, quick = augment.train_transform(recipe), fast.FastTransform(recipe, defer=False)
    pixels = Decoded(photos)
    for index in range(0, 1000, 40):
        seed_generators(index)
        expected = exact(photos[index][0])
        seed_generators(index)
        difference = (
            (quick.finish(quick(pixels[index][0])[None])[0] - expected).mul(255).round().abs()
        )
        assert difference.max() <= 2 and (difference > 0).float().mean() <= 0.02
