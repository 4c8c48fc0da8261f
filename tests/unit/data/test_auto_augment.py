"""AutoAugment for CIFAR-10: ViT-CIFAR's arithmetic and draws, stated here a second time."""

import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2

from deit_tract.common.seeds import seed_generators
from deit_tract.data.transforms import augment
from deit_tract.data.transforms.auto_augment import OPERATIONS, POLICY, apply, auto_augment
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.images import noise

WITHOUT_LEVEL = ("autocontrast", "equalize", "invert")
SIGNED = ["shear_x", "shear_y", "translate_x", "translate_y"]
SIGNED += ["color", "contrast", "sharpness", "brightness"]


def photo(seed: int = 0) -> Image.Image:
    """Smooth colours, so that interpolation shows, of an odd and an even side."""
    return noise((9, 8), seed=seed).resize((33, 32), Image.Resampling.BICUBIC)


def reference(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """One operation of ViT-CIFAR's autoaugment.py, its magnitudes as numpy.linspace rounds them."""
    grey = (128, 128, 128)
    if name == "rotate":  # one way only; what is transparent after it becomes grey
        turned = image.convert("RGBA").rotate(level * (30 / 9))
        behind = Image.new("RGBA", image.size, (*grey, 128))
        return Image.composite(turned, behind, turned).convert("RGB")
    if name.startswith(("shear", "translate")):
        slope = sign * level * (0.3 / 9)
        share = sign * level * (150 / 331 / 9)
        matrix = {
            "shear_x": (1, slope, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, slope, 1, 0),
            "translate_x": (1, 0, share * image.width, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, share * image.height),
        }[name]
        how = Image.Resampling.BICUBIC if "shear" in name else Image.Resampling.NEAREST
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, matrix, how, fillcolor=grey)
    if name == "posterize":
        return ImageOps.posterize(image, round(8 - level * 4 / 9))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - level * (256 / 9))
    if name in WITHOUT_LEVEL:
        return getattr(ImageOps, name)(image)
    return getattr(ImageEnhance, name.title())(image).enhance(1 + sign * level * (0.9 / 9))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_the_references_pixels_at_every_level_and_sign(name):
    image = photo()
    for level in range(10):
        found = set()
        expected = {reference(image, name, level, sign).tobytes() for sign in (-1, 1)}
        for seed in range(12):
            random.seed(seed)
            found.add(apply(image, name, level).tobytes())
        assert found == expected, level
    assert OPERATIONS[name].signed == (name in SIGNED)


def test_the_policy_is_the_published_one():
    table = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    theirs = [[(name.lower(), chance, level) for name, chance, level in row] for row in table]
    ours = [
        [
            (name.replace("_", ""), chance, None if name in WITHOUT_LEVEL else level)
            for name, level, chance in row
        ]
        for row in POLICY
    ]
    assert ours == theirs


def test_draws_are_the_references_in_its_order():
    """A row, then for each step whether, and if so, the sign."""
    for seed in range(400):
        random.seed(seed)
        expected = image = photo(seed % 7)
        for name, level, chance in POLICY[random.randint(0, 24)]:
            if random.random() < chance:
                sign = random.choice([-1, 1]) if name in SIGNED else 1
                expected = reference(expected, name, level, sign)
        after = random.random()
        random.seed(seed)
        assert auto_augment(image).tobytes() == expected.tobytes(), seed
        assert random.random() == after


def test_it_follows_crop_and_flip_and_takes_grey_images():
    recipe = load_recipe("cifar10_vit_100ep")
    steps = augment.train_transform(recipe).transforms
    names = [getattr(step, "__name__", type(step).__name__) for step in steps]
    assert names == ["Resize", "RandomCrop", "RandomHorizontalFlip", "auto_augment", "Normalize"]
    for seed in range(60):
        seed_generators(seed)
        assert auto_augment(noise((32, 32), "L")).mode == "L"
    grey = np.array(apply(Image.new("L", (32, 32)), "rotate", 9))
    assert set(np.unique(grey)) == {0, 128}
