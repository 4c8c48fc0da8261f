"""Operations on batches of uint8 images: PIL's, to the last bit."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import ToTensor, v2

from deit_tract.data.sets.images import Folders
from deit_tract.data.transforms import colour
from tests.helpers.images import as_tensor, noise

pil = v2.functional  # on PIL images it calls PIL
SIZES = [(1, 1), (1, 9), (6, 1), (2, 3), (4, 5), (37, 53), (64, 64)]  # width, height


FACTORS = [0.0, 0.3, 0.7, 0.999, 1.0, 1.0001, 1.3, 2.5]
RADII = [0.1, 0.3, 0.5, 0.99, 1.0, 1.2, 1.41421, 1.5, 1.73, 1.9999, 2.0]


def theirs(name: str, image: Image.Image, number: float) -> Image.Image:
    return {
        "grey": lambda: pil.rgb_to_grayscale(image, num_output_channels=len(image.getbands())),
        "solarize": lambda: ImageOps.solarize(image, 128),
        "blur": lambda: image.filter(ImageFilter.GaussianBlur(number)),
        "brightness": lambda: pil.adjust_brightness(image, number),
        "contrast": lambda: pil.adjust_contrast(image, number),
        "saturation": lambda: pil.adjust_saturation(image, number),
    }[name]()


def ours(name: str, images: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    if name in ("grey", "solarize"):
        return getattr(colour, name)(images)
    columns = (
        torch.tensor([colour.box_weights(n) for n in numbers]).T
        if name == "blur"
        else [torch.tensor(numbers)]
    )
    return getattr(colour, name)(images, *columns)


OPERATIONS = ["grey", "solarize", "blur", "brightness", "contrast", "saturation"]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pils_on_any_size(name, mode):
    numbers = RADII if name == "blur" else np.float32(FACTORS).tolist()
    for size in SIZES:
        images = [noise(size, mode, seed) for seed in range(len(numbers))]
        found = ours(name, torch.stack([as_tensor(image) for image in images]), numbers)
        for image, number, result in zip(images, numbers, found, strict=True):
            assert torch.equal(result, as_tensor(theirs(name, image, number))), (size, number)


def test_any_radius_of_blur_is_pils():
    images = [noise((7, 5), seed=seed) for seed in range(400)]
    radii = np.random.default_rng(0).uniform(0.1, 2.0, 400).tolist()
    found = ours("blur", torch.stack([as_tensor(image) for image in images]), radii)
    expected = torch.stack(
        [as_tensor(theirs("blur", *pair)) for pair in zip(images, radii, strict=True)]
    )
    assert torch.equal(found, expected)


def test_black_white_and_edges_blur_as_pils():
    white, half = Image.new("RGB", (9, 9), "white"), Image.new("RGB", (9, 9))
    half.paste("white", (4, 0, 9, 9))
    for image in (white, half, Image.new("RGB", (9, 9))):
        batch = as_tensor(image).expand(len(RADII), -1, -1, -1)
        for result, radius in zip(ours("blur", batch, RADII), RADII, strict=True):
            assert torch.equal(result, as_tensor(theirs("blur", image, radius)))


def test_normalisation_is_torchvisions():
    values = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256).contiguous()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = v2.Normalize(mean, std)(ToTensor()(Image.fromarray(values.permute(1, 2, 0).numpy())))
    constants = [torch.tensor(numbers).view(3, 1, 1) for numbers in (mean, std)]
    assert torch.equal(colour.normalize(values[None], *constants)[0], expected)


def test_operations_are_pils_on_photos(real_images):
    photos, generator = (
        Folders(real_images("imagenet_samples_256.tar") / "train", "RGB"),
        random.Random(0),
    )
    for index in range(0, 1000, 50):
        image = photos[index][0]
        for name in OPERATIONS:
            number = generator.uniform(0.1, 2.0)
            number = (
                number if name == "blur" else torch.tensor(number).item()
            )  # a factor is drawn in float32
            assert torch.equal(
                ours(name, as_tensor(image)[None], [number])[0],
                as_tensor(theirs(name, image, number)),
            )


def test_a_batch_of_greys_may_be_jittered_in_any_order():
    """Greys share one channel's numbers, but not its memory."""
    images = torch.stack([as_tensor(noise((9, 8), seed=seed)) for seed in range(2)])
    draws = torch.tensor([colour.PLAIN] * 2, dtype=torch.float32)
    draws[:, colour.KIND], draws[:, colour.ORDER] = colour.GREY, torch.tensor([0.0, 3.0])
    draws[:, colour.BRIGHTNESS], draws[:, colour.CONTRAST] = 1.25, 0.75
    together = colour.apply(images.clone(), draws)
    for image, draw, expected in zip(images, draws, together, strict=True):
        assert torch.equal(colour.apply(image.unsqueeze(0).clone(), draw.unsqueeze(0))[0], expected)
