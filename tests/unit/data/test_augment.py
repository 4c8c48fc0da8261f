"""Transforms: DeiT-III's operations in order and frequency, and evaluation without randomness."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from torchvision import transforms as v1
from torchvision.transforms import ToTensor, v2
from torchvision.transforms import functional as pil

from deit_tract.common.seeds import seed_generators
from deit_tract.data.transforms import augment
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.images import noise

PLAIN = [
    "data.channels=3",
    "data.mean=[0,0,0]",
    "data.std=[1,1,1]",
    "augment.affine=null",
    "data.image_size=32",
]


def photo(size=(48, 40)) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).resize(
        size
    )


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_three_augment_is_one_of_three_exact_operations_a_third_each():
    image, transform = photo(), augment.three_augment()
    counts = {"grey": 0, "solarize": 0, "blur": 0}
    grey = np.array(ImageOps.grayscale(image).convert("RGB"))
    solarized = np.array(ImageOps.solarize(image, 128))
    for seed in range(1500):
        seed_generators(seed)
        out = np.array(transform(image))
        kind = "grey" if (out == grey).all() else "solarize" if (out == solarized).all() else "blur"
        counts[kind] += 1
    assert all(430 < count < 570 for count in counts.values()), counts


def test_blur_is_pils_with_a_radius_of_a_tenth_to_two_pixels():
    image = photo()
    for seed in range(20):
        seed_generators(seed)
        out = augment.GaussianBlur()(image)
        import random

        seed_generators(seed)
        radius = random.uniform(0.1, 2.0)
        assert (np.array(out) == np.array(image.filter(ImageFilter.GaussianBlur(radius)))).all()


def test_order_is_crop_flip_three_augment_jitter_tensor():
    recipe = load_recipe(
        "quickstart",
        [*PLAIN, "augment.crop_scale=[0.08,1]", "augment.flip=0.5", "augment.three_augment=true",
         "augment.color_jitter=0.3"],
    )  # fmt: skip
    names = [type(step).__name__ for step in augment.train_transform(recipe).transforms]
    assert names[:4] == ["RandomResizedCrop", "RandomHorizontalFlip", "RandomChoice", "ColorJitter"]
    out = augment.train_transform(recipe)(photo())
    assert (
        out.shape == (3, 32, 32)
        and out.dtype == torch.float32
        and out.min() >= 0
        and out.max() <= 1
    )


def test_a_view_follows_its_seed():
    transform = augment.train_transform(load_recipe("quickstart"))
    image = photo((8, 8)).convert("L")
    outs = []
    for seed in (1, 2, 1):
        seed_generators(seed)
        outs.append(transform(image))
    assert torch.equal(outs[0], outs[2]) and not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize(("crop", "resized"), [(1.0, 32), (0.875, 36), (0.9, 35)])
def test_evaluation_resizes_the_short_side_and_takes_the_centre(crop, resized):
    recipe = load_recipe(
        "quickstart", [*PLAIN, f"evaluate.crop={crop}", "augment.interpolation=bicubic"]
    )
    image = photo()
    width, height = image.size
    small = image.resize((int(resized * width / height), resized), Image.Resampling.BICUBIC)
    expected = as_tensor(pil.center_crop(small, 32))
    assert torch.equal(augment.eval_transform(recipe)(image), expected)


@pytest.mark.parametrize(("crop", "side"), [(0.9, 248), (0.875, 256), (0.95, 235), (1.0, 224)])
def test_evaluation_sees_the_pixels_that_timm_sees(crop, side):
    """224 / 0.9 is 248.9: DeiT and timm cut it off, so nearly every pixel would else differ."""
    more = ["data.image_size=224", f"evaluate.crop={crop}", "augment.interpolation=bicubic"]
    recipe = load_recipe("quickstart", [*PLAIN, *more])
    transform = augment.eval_transform(recipe)
    assert transform.transforms[0].size == [side]
    theirs = create_transform(
        224,
        is_training=False,
        interpolation="bicubic",
        crop_pct=crop,
        mean=recipe.data.mean,
        std=recipe.data.std,
    )
    assert torch.equal(transform(photo((400, 300))), theirs(photo((400, 300))))


def test_normalisation_is_per_channel():
    recipe = load_recipe("quickstart", [*PLAIN, "data.mean=[0.1,0.2,0.3]", "data.std=[1,2,4]"])
    image = photo((32, 32))
    mean, std = (
        torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1),
        torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1),
    )
    torch.testing.assert_close(
        augment.eval_transform(recipe)(image), (as_tensor(image) - mean) / std
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_bears_a_name_of_torchvisions_is_torchvisions_to_the_last_bit(mode):
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if mode == "RGB" else ([0.3], [0.38])
    normalised = v2.Compose([ToTensor(), v2.Normalize(mean, std)])
    modes = [v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR]
    crop = (7, 9), (0.08, 1.0), (3 / 4, 4 / 3)
    pairs = [
        *(
            (augment.RandomResizedCrop(*crop, mode), v2.RandomResizedCrop(*crop, mode))
            for mode in modes
        ),
        (augment.RandomHorizontalFlip(0.3), v2.RandomHorizontalFlip(0.3)),
        (augment.RandomGrayscale(p=1.0), v2.RandomGrayscale(p=1.0)),
        (augment.ColorJitter(0.3, 0.3, 0.3), v2.ColorJitter(0.3, 0.3, 0.3)),
        (augment.ColorJitter(1.0, 1.0, 1.0), v2.ColorJitter(1.0, 1.0, 1.0)),
        (augment.Normalize(mean, std), normalised),
    ]
    for seed in range(150):
        image = photo((1 + seed % 31, 1 + seed % 7)).convert(mode)
        for ours, theirs in pairs:
            results = []
            for transform in (ours, theirs):
                seed_generators(seed)
                results.append((transform(image), torch.rand(1).item()))
            (found, after), (expected, expected_after) = results
            assert type(found) is type(expected) and after == expected_after
            equal = torch.equal if torch.is_tensor(found) else np.array_equal
            assert equal(found, expected)


def test_tables_of_brightness_and_contrast_are_pils_blend():
    values = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    generator = np.random.default_rng(0)
    for factor in (
        0.0,
        0.5,
        1.0,
        1.0000001,
        2.0,
        *generator.uniform(0, 2.5, 300).astype(np.float32).tolist(),
    ):
        for centre in (0, int(generator.integers(256))):
            blended = Image.blend(Image.new("L", (256, 1), centre), values, factor)
            assert (np.array(augment._scaled(values, centre, factor)) == np.array(blended)).all()


def test_rotation_is_torchvisions_between_flip_and_tensor():
    """weiaicunzai/pytorch-cifar100's utils.py: crop, flip, RandomRotation, tensor, normalise."""
    recipe = load_recipe("cifar10_resnet18_sgd_100ep", ["augment.rotate=15"])
    ours = augment.train_transform(recipe)
    theirs = v1.Compose(
        [
            v1.RandomCrop(32, padding=4),
            v1.RandomHorizontalFlip(),
            v1.RandomRotation(15),
            v1.ToTensor(),
            v1.Normalize(recipe.data.mean, recipe.data.std),
        ]
    )
    for seed in range(40):
        image = noise((32, 32), seed=seed)
        seed_generators(seed)
        expected = theirs(image)
        seed_generators(seed)
        assert torch.equal(ours(image), expected)
