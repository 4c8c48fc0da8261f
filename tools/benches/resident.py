"""Images of 32 px held on the device (data.resident): batches of them, and training on them.

Batches: images/s that one core prepares for the recipe cifar10_cnn_8ep_sgd, held as one tensor or
read one by one, in turn and compared bit for bit.

Training: images/s of the recipe cifar10_resnet18_sgd_100ep, as the paper has it and with a key of
`precision` after the other, against a plain loop as of torchvision's and torch's tutorials: a
DataLoader of transformed images, the same network and optimizer. Loading is included.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deit_tract.common.text import table
from deit_tract.data.feed import Feed, Source, make_feed
from deit_tract.data.loader import Batch
from deit_tract.data.resident import Resident
from deit_tract.data.sets.load import load_splits
from deit_tract.data.stream import Stream
from deit_tract.data.transforms import augment
from deit_tract.models.build import build_model
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.tasks.classify import Classify
from tools.benches.measure import MIB, RATIOS, ratio_text, ratios, rounds_of, spread
from tools.benches.step import start_engine

BATCHES = 8  # in a round
STEPS = {"cpu": 1, "cuda": 100}  # in a round
WARM_UP = {"cpu": 1, "cuda": 20}
CPU = torch.device("cpu")
ARMS = {  # each has the keys of those before it, too
    "resident, as the paper": [],
    "+ channels last": ["precision.channels_last=true"],
    "+ compiled": ["precision.compile=true"],
    "+ bf16": ["precision.autocast=bf16"],
    "+ TrAct": ["model.tract=0.1"],
}


def settings(arguments: argparse.Namespace) -> list[str]:
    name = arguments.data if arguments.data_dir else "synthetic"
    return [f"data.name={name}", "data.verify=false"]


def load_images(recipe: Recipe) -> Dataset | list:
    """Load the training images; made ones are kept, since making one takes longer than reading."""
    images = load_splits(recipe.data).train
    if recipe.data.name != "synthetic":
        return images
    return [images[index] for index in range(len(images))]


# ---- batches -------------------------------------------------------------------------------------


def check_equal(one: list[Batch], other: list[Batch]) -> None:
    for batch, same in zip(one, other, strict=True):
        assert all(torch.equal(batch[name], same[name]) for name in batch)


def measure_batches(arguments: argparse.Namespace, rounds: int) -> dict:
    """Measure both ways on the CPU and print their rates."""
    recipe = load_recipe("cifar10_cnn_8ep_sgd", settings(arguments), arguments.data_dir)
    images = load_images(recipe)
    stream = Stream(len(images), recipe.batch.lanes, recipe.batch.lane_size)
    start = time.process_time()
    held = Resident(images, recipe, recipe.augment)
    decoding = time.process_time() - start
    size = held.pixels.numel() / MIB
    print(f"{len(images):,} images decoded in {decoding:.1f} s of CPU time, {size:.0f} MiB\n")
    sources = {
        "resident": Source(held),
        "one by one": Source(images, augment.train_transform(recipe)),
    }
    variants: dict[str, Feed] = {
        name: make_feed(source, stream, [0], 0, CPU) for name, source in sources.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        steps = range(BATCHES * number, BATCHES * (number + 1))
        made = []
        for name, variant in variants.items():
            start = time.process_time()
            made.append(list(variant.batches(steps)))
            samples[name].append(time.process_time() - start)
        check_equal(*made)
    results, rows = {"decoding_s": decoding, "mib": size}, []
    for name, values in samples.items():
        rate = spread([BATCHES * recipe.batch.size / value for value in values])
        ratio = ratios(values, samples["resident"])
        results[name] = {"images_per_s": rate, "ratio": ratio, "samples_s": values}
        rows.append([name, f"{rate[1]:,.0f}", ratio_text(ratio)])
    print(table(("batches", "images/s", "time / resident"), rows))
    print(f"\n{RATIOS} One thread, process time.\n")
    return results


# ---- training ------------------------------------------------------------------------------------


class Transformed(Dataset):
    """Images as torchvision's data sets give them, with a transform."""

    def __init__(self, images: Sequence[tuple[Image.Image, int]], transform: Callable):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


def plain_loop(recipe: Recipe, images: Sequence, device: torch.device, workers: int) -> Iterator:
    """Train on a DataLoader, without anything of this project but the network; yields each step."""
    data, optim = recipe.data, recipe.optim
    steps = [
        transforms.RandomCrop(data.image_size, padding=recipe.augment.crop_padding),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    how = {"num_workers": workers, "persistent_workers": workers > 0}
    how |= {"pin_memory": device.type == "cuda", "shuffle": True, "drop_last": True}
    images = Transformed(images, transforms.Compose(steps))
    loader = DataLoader(images, recipe.batch.size, **how)
    model = build_model(recipe).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), optim.lr, optim.momentum)
    while True:
        for batch, labels in loader:
            batch = batch.to(device, non_blocking=True)
            loss = F.cross_entropy(model(batch), labels.to(device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_loop(recipe: Recipe, images: Sequence, held: Resident, device: torch.device) -> Iterator:
    """Train as the training loop does, on images that are decoded already; yields each step."""
    task = Classify(recipe, images)
    engine = start_engine(recipe, task.model)
    task.model.train()
    stream = Stream(len(images), recipe.batch.lanes, recipe.batch.lane_size)
    feed = make_feed(Source(held), stream, [0], recipe.data.workers, device)
    for step, batch in enumerate(feed.batches(range(10**6))):
        with engine.lane(True):
            losses = task.loss(engine.model, [batch], [stream.lane_seed(step, 0)])
            engine.backward(losses["loss"])
        engine.step(recipe.optim.lr)
        yield


def seconds(loop: Iterator, steps: int, device: torch.device) -> float:
    """Take steps; return their wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in itertools.islice(loop, steps):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def loops(arguments: argparse.Namespace, device: torch.device) -> dict[str, Iterator]:
    """Return the loops to compare, the plain one first."""
    name = "cifar10_resnet18_sgd_100ep"
    common = settings(arguments)
    recipe = load_recipe(name, common, arguments.data_dir)
    images = load_images(recipe)
    held = Resident(images, recipe, recipe.augment)
    workers = min(len(os.sched_getaffinity(0)), 16)
    made = {f"plain loop, {workers} workers": plain_loop(recipe, images, device, workers)}
    common.append("data.resident=false")  # the task need not decode them again
    for arm, keys in ARMS.items():
        if keys == ["precision.compile=true"] and device.type == "cpu" and not arguments.compile:
            continue
        common += keys
        recipe = load_recipe(name, common, arguments.data_dir)
        made[arm] = our_loop(recipe, images, held, device)
    return made


def measure_training(arguments: argparse.Namespace, rounds: int, device: torch.device) -> dict:
    """Measure all loops in turn and print their rates."""
    made = loops(arguments, device)
    size = load_recipe("cifar10_resnet18_sgd_100ep").batch.size
    steps = STEPS[device.type]
    for loop in made.values():
        seconds(loop, WARM_UP[device.type], device)
    samples: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, loop in made.items():
            samples[name].append(seconds(loop, steps, device))
    results, rows = {}, []
    base = next(iter(samples.values()))
    for name, values in samples.items():
        rate = spread([steps * size / value for value in values])
        speed = ratios(base, values)
        results[name] = {"images_per_s": rate, "speed": speed, "samples_s": values}
        rows.append([name, f"{rate[1]:,.0f}", ratio_text(speed)])
    print(table(("ResNet-18 at 32 px", "images/s", "speed / plain loop"), rows))
    print(f"\n{RATIOS} Wall time, batches of {size}, {steps} steps a round.")
    return results


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print batches, then training."""
    rounds = rounds_of(arguments, 9)
    results = {}
    parts = {"batches": measure_batches, "training": partial(measure_training, device=device)}
    for name, part in parts.items():
        if not arguments.only or name in arguments.only:
            results[name] = part(arguments, rounds)
    return results
