"""Work per training image, JPEG to batch: `python tools/bench.py data [--images DIR] [--rounds N] [--json FILE]`.

    D      DeiT's pipeline: PIL, torchvision, timm's crop, normalised float32 images to the loader
    T      timm's: create_transform, uint8 images to the loader (fast_collate), normalisation left to the GPU
    exact  ours, equal to D to the last bit
    fast   ours, what the CPU does for a GPU: uint8 images to the loader
    fast without a GPU    all of it

Every variant works on the same views of the same images in one process with one thread; process time.
"""

import argparse
import tempfile
from collections.abc import Callable
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
from torch.utils.data import Dataset, default_collate
from torchvision import transforms
from torchvision.transforms import v2

from deit_tract.common.seeds import seed_generators
from deit_tract.data import feed
from deit_tract.data.loader import Views
from deit_tract.data.sets import decode
from deit_tract.data.sets.readers import Images
from deit_tract.data.stream import Stream, View
from deit_tract.data.transforms import augment, fast
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from tools.bench import compare, interleaved, markdown, ratio_text, rounds_of, version

COUNT, LANES = 200, 8
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")
CASES = {  # recipe and overrides
    "pre-training, 3 repeats": ("vit_s_800ep", []),
    "pre-training, no repeats": ("vit_s_800ep", ["augment.repeats=1"]),
    "fine-tuning, RandAugment": ("vit_s_ft224", []),
}


class Files(Images):
    """Image files as a data set with one class."""

    def __init__(self, files: list[Path]):
        self.root, self.classes, self.mode = "", ["image"], "RGB"
        self.files, self.labels = [str(file) for file in files], np.zeros(len(files), np.int32)

    def open(self, index: int) -> str:
        return self.files[index]

    name = open


def choose(folder: Path) -> list[Path]:
    """At most 200 JPEGs below a folder, evenly spread over their sorted names."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(files) < LANES:
        raise SystemExit(f"error: {folder}: holds {len(files)} JPEGs; {LANES} lanes need as many")
    return [files[len(files) * i // min(COUNT, len(files))] for i in range(min(COUNT, len(files)))]


def generate(folder: Path) -> list[Path]:
    """JPEGs of about ImageNet's sizes, in pixels and bytes: noise in octaves over shapes with edges."""
    files = []
    for number in range(COUNT):
        generator = np.random.default_rng(number)
        width, height = (
            int(side) for side in generator.permutation([500, generator.integers(333, 400)])
        )
        total = np.zeros((height, width, 3))
        for octave in (4, 16, 64, 256):
            noise = generator.integers(0, 256, (octave, octave, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            total += np.asarray(image, float) / octave**0.2
        image = Image.fromarray((total / total.max() * 255).astype(np.uint8))
        shapes = Image.fromarray(generator.integers(0, 2, (6, 8), dtype=np.uint8) * 255).resize(
            (width, height), 0
        )
        image.paste(image.filter(ImageFilter.GaussianBlur(4)), mask=shapes)
        files.append(folder / f"{number:03}.jpg")
        image.save(files[-1], quality=95, subsampling=0 if number % 4 else 2)
    return files


# ---- the pipelines ---------------------------------------------------------------------------------------------------


def deit_transform(recipe: Recipe) -> Callable:
    """DeiT's: with 3-Augment and colour jitter (its augment.py), or with RandAugment (its datasets.py).

    Like those, of torchvision's first transforms and timm's crop.
    """
    steps = [
        RandomResizedCropAndInterpolation(
            recipe.data.image_size, (0.08, 1.0), interpolation="bicubic"
        )
    ]
    return transforms.Compose(
        [*steps, transforms.RandomHorizontalFlip(), *colours(recipe, transforms)]
    )


def drawn_as_ours(recipe: Recipe) -> Callable:
    """DeiT's transform of torchvision's second ones, which draw what ours draw."""
    crop = v2.RandomResizedCrop(
        recipe.data.image_size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC
    )
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *colours(recipe, v2)])


def colours(recipe: Recipe, version) -> list[Callable]:
    """RandAugment, or 3-Augment and jitter, and what makes a tensor; version: of torchvision's transforms."""
    if recipe.augment.rand_augment:
        steps = [augment.rand_augment(recipe.augment.rand_augment, recipe.data)]
    else:
        kinds = [
            version.RandomGrayscale(1.0),
            version.RandomSolarize(128, 1.0),
            augment.GaussianBlur(0.1, 2.0),
        ]
        steps = [version.RandomChoice(kinds), version.ColorJitter(0.3, 0.3, 0.3)]
    return [*steps, transforms.ToTensor(), version.Normalize(MEAN, STD)]


def timm_transform(recipe: Recipe) -> Callable:
    policy = recipe.augment.rand_augment
    transform = create_transform(
        recipe.data.image_size, is_training=True, use_prefetcher=True, auto_augment=policy or "3a", color_jitter=0.3,
        interpolation="bicubic",
    )  # fmt: skip
    if policy:  # the same, but for posterize, which on Pillow 13 stops at 0 bits
        [place] = [
            i for i, step in enumerate(transform.transforms) if isinstance(step, RandAugment)
        ]
        transform.transforms[place] = augment.rand_augment(policy, recipe.data)
    return transform


def opened(path: str) -> Image.Image:
    """As torchvision's ImageFolder and timm open a file."""
    with open(path, "rb") as file, Image.open(file) as image:
        return image.convert("RGB")


def simple(
    files: list[str], transform: Callable, collate: Callable, seeded: bool = False
) -> Callable:
    """A loader that reads and transforms an image for every view of it."""

    def sample(view: View) -> tuple:
        image = opened(files[view.index])
        if seeded:
            seed_generators(view.seed)
        return transform(image), 0

    return lambda lanes: [collate([sample(view) for view in lane]) for lane in lanes]


class HostPart(fast.FastTransform):
    """The fast transform without the GPU's part."""

    def finish(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        return images


def variants(recipe: Recipe, files: list[Path]) -> dict[str, Callable[[], list]]:
    """Each a function that makes the batches of a step, at every call of the next."""
    images = Files(files)
    stream = Stream(len(files), LANES, len(files) // LANES, recipe.augment.repeats)

    def theirs(transform: Callable, collate: Callable) -> Callable:
        load, step = simple(images.files, transform, collate), count()
        return lambda: load(keys(stream, next(step)))

    def ours(data: Dataset, transform: Callable) -> Callable:
        load, step = partial(feed.lane_batches, Views(data, transform), stream), count()
        return lambda: list(load(range(now := next(step), now + 1), range(LANES), 0, CPU))

    return {
        "D": theirs(deit_transform(recipe), default_collate),
        "T": theirs(timm_transform(recipe), fast_collate),
        "exact": ours(images, augment.TrainTransform(recipe)),
        "fast": ours(decode.Decoded(images), HostPart(recipe, defer=True)),
        "fast without a GPU": ours(decode.Decoded(images), fast.FastTransform(recipe, defer=False)),
    }


def keys(stream: Stream, step: int) -> list[list[View]]:
    return [stream.views(step, lane) for lane in range(LANES)]


def difference(recipe: Recipe, files: list[Path]) -> dict[str, float]:
    """Of one step from D's, drawn alike: values that differ in exact; in fast their share, in percent."""
    images = Files(files)
    stream = Stream(len(files), LANES, len(files) // LANES, recipe.augment.repeats)
    expected = simple(images.files, drawn_as_ours(recipe), default_collate, seeded=True)(
        keys(stream, 0)
    )
    found = {}
    for name, data, transform in (
        ("exact", images, augment.TrainTransform(recipe)),
        ("fast", decode.Decoded(images), fast.FastTransform(recipe, defer=True)),
    ):
        lanes = feed.lane_batches(Views(data, transform), stream, range(1), range(LANES), 0, CPU)
        pairs = [(ours[0] != theirs[0]) for ours, theirs in zip(lanes, expected, strict=True)]
        found[name] = torch.cat(pairs).float()
    return {
        "exact_values": int(found["exact"].sum()),
        "fast_percent": 100 * found["fast"].mean().item(),
    }


def on_device(
    recipe: Recipe, files: list[Path], rounds: int, device: torch.device, batch: int = 256
) -> dict:
    """What `fast` leaves to a GPU: a batch's way there, its colours and normalisation, in ms."""
    views = Views(decode.Decoded(Files(files)), transform := fast.FastTransform(recipe, defer=True))
    stream = Stream(len(files), 1, len(files), recipe.augment.repeats)
    images, _, draws = default_collate([views[view] for view in stream.views(0, 0)])
    turns = -(-batch // len(images))
    images, draws = images.repeat(turns, 1, 1, 1)[:batch], draws.repeat(turns, 1)[:batch]
    images = images.pin_memory() if device.type == "cuda" else images
    run = {"fast": lambda: transform.finish(images.to(device, non_blocking=True), draws)}
    return compare(interleaved(run, rounds, device), "fast")["fast"]


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Every case, printed as a table, and on a GPU what is left to it."""
    with tempfile.TemporaryDirectory() as folder:
        files = choose(arguments.images) if arguments.images else generate(Path(folder))
        results = _run(arguments, files)
        if device.type == "cuda":
            found = on_device(load_recipe("vit_s_800ep"), files, rounds_of(arguments, 11), device)
            results["on the device"] = found
            low, middle, high = found["ms"]
            print(f"fast, 256 images on the device: {middle:.2f} ms ({low:.2f}-{high:.2f})")
        return results


def _run(arguments: argparse.Namespace, files: list[Path]) -> dict:
    pixels = np.mean([np.prod(Image.open(file).size) for file in files])
    size = np.mean([file.stat().st_size for file in files])
    results: dict = {
        "images": {"count": len(files), "kilopixels": pixels / 1e3, "kilobytes": size / 1e3}
    }
    results["versions"] = {
        name: version(name) for name in ("pillow", "torchvision", "timm", "simplejpeg")
    }
    print(
        f"{len(files)} images, mean {pixels / 1e3:.0f} kpx and {size / 1e3:.0f} kB; {results['versions']}\n"
    )
    rows = []
    for case, (name, overrides) in CASES.items():
        if arguments.only and not any(word in case for word in arguments.only):
            continue
        recipe = load_recipe(name, overrides)
        samples = interleaved(variants(recipe, files), rounds_of(arguments, 11), CPU)
        views = len(files) // LANES * LANES
        result = compare(
            {run: [value / views for value in values] for run, values in samples.items()}, "D"
        )
        results[case] = {"ms per image": result, "differs from D": difference(recipe, files)}
        rows += [row(case, run, figures) for run, figures in result.items()]
        print(f"{case}: values unlike D's with the same draws: {results[case]['differs from D']}")
    print("\n" + markdown(["case", "pipeline", "ms per image", "of D's", "D's, times"], rows))
    print("\nMedian (quartiles) over rounds; one thread, process time.")
    return results


def row(case: str, name: str, figures: dict) -> list[str]:
    return [
        case,
        name,
        f"{figures['ms'][1]:.3f}",
        ratio_text(figures["ratio"]),
        f"{1 / figures['ratio'][1]:.2f}",
    ]
