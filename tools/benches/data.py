"""Work per training image, from JPEG to batch.

    D      DeiT's pipeline: PIL, torchvision, timm's crop, normalised float32 images to the loader
    T      timm's: create_transform, uint8 images to the loader (fast_collate), the GPU normalises
    exact  ours, equal to D bit for bit
    fast   ours, what the CPU does for a GPU: uint8 images to the loader
    fast without a GPU    all of it

Every variant works on the same views of the same images in one process with one thread; what is
measured is process time.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.loader import fast_collate
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import transforms
from torchvision.transforms import v2

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import seed_generators
from deit_tract.common.text import table
from deit_tract.data.feed import Source, make_feed
from deit_tract.data.loader import Views, stacked
from deit_tract.data.sets import decode
from deit_tract.data.sets.images import Images
from deit_tract.data.stream import Stream, View
from deit_tract.data.transforms import augment, fast
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from tools.benches.measure import compare, interleaved, ratio_text, rounds_of, version, wanted

COUNT = 200  # images at most
LANES = 8
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SCALES = (0.08, 1.0)  # of a crop's area
CPU = torch.device("cpu")
CASES = {  # recipe and overrides
    "pre-training, 3 repeats": ("vit_s_800ep", []),
    "pre-training, no repeats": ("vit_s_800ep", ["augment.repeats=1"]),
    "fine-tuning, RandAugment": ("vit_s_ft224", []),
}
COLUMNS = ("case", "pipeline", "ms per image", "of D's", "D's, times")
PACKAGES = ("pillow", "torchvision", "timm", "simplejpeg")


# ---- images --------------------------------------------------------------------------------------


class Files(Images):
    """Image files as a data set with one class."""

    def __init__(self, files: list[Path]):
        self.root = ""
        self.classes = ["image"]
        self.mode = "RGB"
        self.files = [str(file) for file in files]
        self.labels = np.zeros(len(files), np.int32)

    def open(self, index: int) -> str:
        return self.files[index]

    name = open


@contextmanager
def image_files(folder: Path | None) -> Iterator[list[Path]]:
    """Yield JPEGs below a folder, or generated ones."""
    if folder is not None:
        yield choose(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield [generate(Path(temporary), number) for number in range(COUNT)]


def choose(folder: Path) -> list[Path]:
    """Return at most COUNT JPEGs below a folder, evenly spread over their sorted names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(files) < LANES:
        raise UserError(folder, f"holds {len(files)} JPEGs", f"{LANES} lanes need as many")
    taken = min(COUNT, len(files))
    return [files[len(files) * i // taken] for i in range(taken)]


def generate(folder: Path, number: int) -> Path:
    """Write a JPEG of about ImageNet's size, in pixels and bytes.

    It has noise in octaves, and shapes with edges.
    """
    generator = np.random.default_rng(number)
    sides = generator.permutation([500, generator.integers(333, 400)])
    size = int(sides[0]), int(sides[1])
    total = np.zeros((size[1], size[0], 3))
    for octave in (4, 16, 64, 256):
        noise = generator.integers(0, 256, (octave, octave, 3), dtype=np.uint8)
        enlarged = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        total += np.asarray(enlarged, float) / octave**0.2
    image = Image.fromarray((total / total.max() * 255).astype(np.uint8))
    mask = generator.integers(0, 2, (6, 8), dtype=np.uint8) * 255
    shapes = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    image.paste(image.filter(ImageFilter.GaussianBlur(4)), mask=shapes)
    file = folder / f"{number:03}.jpg"
    image.save(file, quality=95, subsampling=0 if number % 4 else 2)
    return file


def opened(path: str) -> Image.Image:
    """Open a file as torchvision's ImageFolder and timm do."""
    with open(path, "rb") as file, Image.open(file) as image:
        return image.convert("RGB")


# ---- the pipelines -------------------------------------------------------------------------------


def deit_transform(recipe: Recipe) -> Callable:
    """DeiT's transform, made of torchvision's first transforms and timm's crop as there.

    With 3-Augment and colour jitter (its augment.py), or with RandAugment (its datasets.py).
    """
    size = recipe.data.image_size
    crop = RandomResizedCropAndInterpolation(size, SCALES, interpolation="bicubic")
    flip = transforms.RandomHorizontalFlip()
    return transforms.Compose([crop, flip, *colours(recipe, transforms)])


def drawn_as_ours(recipe: Recipe) -> Callable:
    """DeiT's transform made of torchvision's second transforms, which draw what ours draw."""
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(recipe.data.image_size, SCALES, interpolation=bicubic)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *colours(recipe, v2)])


def colours(recipe: Recipe, made_of) -> list[Callable]:
    """RandAugment, or 3-Augment and jitter, and the conversion to a tensor.

    made_of: torchvision's first or second transforms.
    """
    if recipe.augment.rand_augment:
        steps = [augment.rand_augment(recipe.augment.rand_augment, recipe.data)]
    else:
        grey = made_of.RandomGrayscale(1.0)
        solarized = made_of.RandomSolarize(128, 1.0)
        blurred = augment.GaussianBlur(0.1, 2.0)
        one_of_three = made_of.RandomChoice([grey, solarized, blurred])
        steps = [one_of_three, made_of.ColorJitter(0.3, 0.3, 0.3)]
    return [*steps, transforms.ToTensor(), made_of.Normalize(MEAN, STD)]


def timm_transform(recipe: Recipe) -> Callable:
    policy = recipe.augment.rand_augment
    transform = create_transform(
        recipe.data.image_size,
        is_training=True,
        use_prefetcher=True,
        auto_augment=policy or "3a",
        color_jitter=0.3,
        interpolation="bicubic",
    )
    if policy:  # the same except for posterize, which on Pillow 13 stops at 0 bits
        kinds = [isinstance(step, RandAugment) for step in transform.transforms]
        ours = augment.rand_augment(policy, recipe.data)
        transform.transforms[kinds.index(True)] = ours
    return transform


class HostPart(fast.FastTransform):
    """The fast transform without the GPU's part."""

    def finish(self, images: Tensor, **drawn: Tensor) -> Tensor:
        return images


def stream_of(recipe: Recipe, files: list[Path], lanes: int = LANES) -> Stream:
    return Stream(len(files), lanes, len(files) // lanes, recipe.augment.repeats)


def simple(
    stream: Stream, files: list[str], transform: Callable, collate: Callable, seeded: bool = False
) -> Callable[[int], list]:
    """Return a function of a step that reads and transforms an image for every view of it."""

    def sample(view: View) -> tuple:
        image = opened(files[view.index])
        if seeded:
            seed_generators(view.seed)
        return transform(image), 0

    def load(step: int) -> list:
        lanes = [stream.views(step, lane) for lane in range(LANES)]
        return [collate([sample(view) for view in lane]) for lane in lanes]

    return load


def fed(stream: Stream, data: Dataset, transform: Callable) -> Callable[[int], list]:
    """Return a function of a step that loads it as the training loop does, without workers."""
    lanes = make_feed(Source(data, transform), stream, range(LANES), 0, CPU)
    return lambda step: list(lanes.batches([step]))


def variants(recipe: Recipe, files: list[Path]) -> dict[str, Callable[[], list]]:
    """Return functions that make the batches of a step, each call those of the next step."""
    images = Files(files)
    decoded = decode.Decoded(images)
    stream = stream_of(recipe, files)
    made = {
        "D": simple(stream, images.files, deit_transform(recipe), default_collate),
        "T": simple(stream, images.files, timm_transform(recipe), fast_collate),
        "exact": fed(stream, images, augment.TrainTransform(recipe)),
        "fast": fed(stream, decoded, HostPart(recipe, defer=True)),
        "fast without a GPU": fed(stream, decoded, fast.FastTransform(recipe, defer=False)),
    }

    def in_turn(load: Callable[[int], list], steps: Iterator[int]) -> list:
        return load(next(steps))

    return {name: partial(in_turn, load, count()) for name, load in made.items()}


def difference(recipe: Recipe, files: list[Path]) -> dict[str, float]:
    """Compare one step to D's with the same draws.

    Counts the values that differ in exact; in fast, their share in percent.
    """
    images = Files(files)
    stream = stream_of(recipe, files)
    theirs = drawn_as_ours(recipe)
    expected = simple(stream, images.files, theirs, default_collate, seeded=True)(0)

    def differing(data: Dataset, transform: Callable) -> Tensor:
        lanes = zip(fed(stream, data, transform)(0), expected, strict=True)
        return torch.cat([ours["image"] != theirs[0] for ours, theirs in lanes]).float()

    exact = differing(images, augment.TrainTransform(recipe))
    deferred = fast.FastTransform(recipe, defer=True)
    share = differing(decode.Decoded(images), deferred).mean().item()
    return {"exact_values": int(exact.sum()), "fast_percent": 100 * share}


def on_device(
    recipe: Recipe, files: list[Path], rounds: int, device: torch.device, batch: int = 256
) -> dict:
    """Measure what `fast` leaves to a GPU: a batch's way there, its colours and normalisation."""
    transform = fast.FastTransform(recipe, defer=True)
    views = Views(decode.Decoded(Files(files)), transform)
    stream = stream_of(recipe, files, lanes=1)
    sample = stacked([views[view] for view in stream.views(0, 0)]).data
    images, draws = sample["image"], sample["draws"]
    repeats = -(-batch // len(images))
    images = images.repeat(repeats, 1, 1, 1)[:batch]
    draws = draws.repeat(repeats, 1)[:batch]
    if device.type == "cuda":
        images = images.pin_memory()

    def run():
        transform.finish(images.to(device, non_blocking=True), draws)

    return compare(interleaved({"fast": run}, rounds, device))["fast"]


# ---- the bench -----------------------------------------------------------------------------------


def describe(files: list[Path]) -> dict[str, dict]:
    """Print and return what the images and the packages that read them are."""
    kilopixels = np.mean([np.prod(Image.open(file).size) for file in files]) / 1e3
    kilobytes = np.mean([file.stat().st_size for file in files]) / 1e3
    versions = {name: version(name) for name in PACKAGES}
    print(f"{len(files)} images, mean {kilopixels:.0f} kpx and {kilobytes:.0f} kB; {versions}\n")
    images = {"count": len(files), "kilopixels": kilopixels, "kilobytes": kilobytes}
    return {"images": images, "versions": versions}


def measure(recipe: Recipe, files: list[Path], rounds: int) -> dict:
    """Milliseconds per image of every variant, and how far ours are from D."""
    views = len(files) // LANES * LANES
    samples = interleaved(variants(recipe, files), rounds, CPU)
    per_image = {name: [value / views for value in values] for name, values in samples.items()}
    return {"ms per image": compare(per_image), "differs from D": difference(recipe, files)}


def row(case: str, name: str, figures: dict) -> list[str]:
    ratio = figures["ratio"]
    milliseconds = figures["ms"][1]
    return [case, name, f"{milliseconds:.3f}", ratio_text(ratio), f"{1 / ratio[1]:.2f}"]


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print every case, and on a GPU what is left to it."""
    rounds = rounds_of(arguments, 11)
    rows: list[list[str]] = []
    with image_files(arguments.images) as files:
        results = describe(files)
        for case, (name, overrides) in CASES.items():
            if not wanted(case, arguments):
                continue
            results[case] = found = measure(load_recipe(name, overrides), files, rounds)
            rows += [row(case, run, each) for run, each in found["ms per image"].items()]
            print(f"{case}: values unlike D's with the same draws: {found['differs from D']}")
        print("\n" + table(COLUMNS, rows))
        print("\nMedian (quartiles) over rounds; one thread, process time.")
        if device.type == "cuda":
            found = on_device(load_recipe("vit_s_800ep"), files, rounds, device)
            results["on the device"] = found
            low, middle, high = found["ms"]
            print(f"fast, 256 images on the device: {middle:.2f} ms ({low:.2f}-{high:.2f})")
    return results
