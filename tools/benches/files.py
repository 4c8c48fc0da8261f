"""Training from JPEGs, workers included, against the same step on ready images and against DeiT.

    ours                  data.pipeline fast, the step of the training loop
    ours, ready images    the same step, images made once on the device
    D                     DeiT's pipeline (data.py) with as many workers, DeiT's step (step.py)

Wall time, since workers are separate processes: images/s over some steps after the first ones.
Variants run in turn, each with the machine to itself.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deit_tract.common.text import table
from deit_tract.data.feed import Source, make_feed
from deit_tract.data.stream import Stream, View
from deit_tract.data.transforms import fast
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from tools.benches import step
from tools.benches.data import Files, deit_transform, image_files, opened
from tools.benches.measure import RATIOS, ratio_text, ratios, rounds_of, spread, wanted

CASES = {  # recipe, images a step, steps before and in a measurement
    "cpu": {"ViT-S@224 from JPEGs": ("vit_s_800ep_tract", 8, 1, 3)},
    "cuda": {
        "ViT-S@224 from JPEGs": ("vit_s_800ep_tract", 256, 20, 40),
        "ViT-B@192 from JPEGs": ("vit_b_800ep_tract", 256, 20, 40),
    },
}
COLUMNS = ("case", "variant", "images/s", "time / ours")


class ByDeit(Dataset):
    """Opens and transforms every view by itself, as ImageFolder does under DeiT's sampler."""

    def __init__(self, images: Files, transform: Callable):
        self.images = images
        self.transform = transform

    def __getitem__(self, view: View) -> tuple[Tensor, int]:
        image = opened(self.images.files[view.index])
        return self.transform(image), int(self.images.labels[view.index])


def batches(
    recipe: Recipe, images: Files, workers: int, device: torch.device
) -> dict[str, Callable[[], Iterator]]:
    """Return functions that start a loader and yield batches on the device without end."""
    stream = Stream(len(images), 1, recipe.batch.size, recipe.augment.repeats)

    def ours() -> Iterator:
        source = Source(*fast.pipeline(recipe, images))
        batches = make_feed(source, stream, [0], workers, device).batches(range(1 << 30))
        return ([batch["image"], batch["label"]] for batch in batches)

    def ready() -> Iterator:
        return itertools.repeat([batch.clone() for batch in next(ours())])

    def by_deit() -> Iterator:
        views = (stream.views(step, 0) for step in itertools.count())
        loader = DataLoader(
            ByDeit(images, deit_transform(recipe)),
            batch_sampler=views,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        return ([part.to(device, non_blocking=True) for part in batch] for batch in loader)

    return {"ours": ours, "ours, ready images": ready, "D": by_deit}


def seconds(
    start: Callable[[], Iterator], run: Callable, first: int, count: int, device: torch.device
) -> float:
    """Time `count` steps.

    The `first` ones before them wait for workers and use up what these have prepared so far.
    """
    made = start()
    for steps in (first, count):
        began = time.perf_counter()
        for batch in itertools.islice(made, steps):
            run(*batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(
    case: str, files: list[Path], rounds: int, workers: int, device: torch.device
) -> tuple[dict, list]:
    name, batch, first, count = CASES[device.type][case]
    shape = [f"batch.size={batch}", "batch.lanes=1", "precision.autocast=bf16"]
    recipe = load_recipe(name, ["data.name=synthetic", *shape])
    images = Files(files * -(-2 * batch // len(files)))  # an epoch has two steps or more
    mine = step.ours(recipe)
    deits = step.theirs(recipe, device, like_deit=True)
    steps = {"ours": mine, "ours, ready images": mine, "D": deits}
    starts = batches(recipe, images, workers, device)
    samples: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, run in steps.items():
            samples[label].append(seconds(starts[label], run, first, count, device))
    result, rows = {}, []
    for label, values in samples.items():
        rate = spread([count * batch / value for value in values])
        ratio = ratios(values, samples["ours"])
        result[label] = {"images_per_s": rate, "ratio": ratio, "samples_s": values}
        rows.append([case, label, f"{rate[1]:,.4g}", ratio_text(ratio)])
    return result, rows


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure and print every case."""
    workers = len(os.sched_getaffinity(0))
    results, rows = {"workers": workers}, []
    with image_files(arguments.images) as files:
        for case in CASES[device.type]:
            if wanted(case, arguments):
                measured = measure(case, files, rounds_of(arguments, 5), workers, device)
                results[case], more = measured
                rows += more
    print(table(COLUMNS, rows))
    print(f"\nWall time, {workers} workers. {RATIOS}")
    return results
