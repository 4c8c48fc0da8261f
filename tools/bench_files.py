"""`bench.py files`: training from JPEGs, workers and all, against the same step on ready images and against D.

    ours                  data.pipeline fast, the step of the training loop
    ours, ready images    the same step, images made once on the device
    D                     DeiT's pipeline (bench_data.py) in the same number of workers, DeiT's step (bench_step.py)

Wall time, since workers are processes of their own: images/s over some steps after the first ones, each variant with
the machine to itself, in turn.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from deit_tract.data import feed
from deit_tract.data.loader import Views
from deit_tract.data.stream import Stream, View
from deit_tract.data.transforms import fast
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from tools import bench_step
from tools.bench import markdown, ratio_text, rounds_of, spread
from tools.bench_data import Files, choose, deit_transform, generate, opened

CASES = {  # recipe, images a step, steps before and in a measurement
    "cpu": {"ViT-S@224 from JPEGs": ("vit_s_800ep_tract", 8, 1, 3)},
    "cuda": {
        "ViT-S@224 from JPEGs": ("vit_s_800ep_tract", 256, 20, 40),
        "ViT-B@192 from JPEGs": ("vit_b_800ep_tract", 256, 20, 40),
    },
}
COLUMNS = ["case", "variant", "images/s", "time / ours"]


class ByDeit(Dataset):
    """Every view opened and transformed by itself, as torchvision's ImageFolder under DeiT's sampler."""

    def __init__(self, images: Files, transform: Callable):
        self.images, self.transform = images, transform

    def __getitem__(self, view: View) -> tuple[torch.Tensor, int]:
        return self.transform(opened(self.images.files[view.index])), int(
            self.images.labels[view.index]
        )


def batches(
    recipe: Recipe, images: Files, workers: int, device: torch.device
) -> dict[str, Callable[[], Iterator]]:
    """For each variant, a function that starts its loader and gives batches on the device without end."""
    stream = Stream(len(images), 1, recipe.batch.size, recipe.augment.repeats)

    def ours() -> Iterator:
        views = Views(*fast.pipeline(recipe, images))
        return feed.lane_batches(views, stream, range(1 << 30), [0], workers, device)

    def ready() -> Iterator:
        return itertools.repeat([batch.clone() for batch in next(ours())])

    def by_deit() -> Iterator:
        views = (stream.views(step, 0) for step in itertools.count())
        loader = DataLoader(ByDeit(images, deit_transform(recipe)), batch_sampler=views, num_workers=workers,
                            pin_memory=device.type == "cuda")  # fmt: skip
        return ([part.to(device, non_blocking=True) for part in batch] for batch in loader)

    return {"ours": ours, "ours, ready images": ready, "D": by_deit}


def seconds(
    start: Callable[[], Iterator], step: Callable, first: int, count: int, device: torch.device
) -> float:
    """For `count` steps. The `first` ones before them wait for workers and use up what these have made meanwhile."""
    taken = start()
    for steps in (first, count):
        began = time.perf_counter()
        for batch in itertools.islice(taken, steps):
            step(*batch)
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
    with tempfile.TemporaryDirectory() as folder:
        mine = bench_step.ours(recipe, Path(folder))
        steps = {
            "ours": mine,
            "ours, ready images": mine,
            "D": bench_step.theirs(recipe, device, True, False),
        }
        starts = batches(recipe, images, workers, device)
        samples: dict[str, list[float]] = {label: [] for label in steps}
        for _ in range(rounds):
            for label, step in steps.items():
                samples[label].append(seconds(starts[label], step, first, count, device))
    result, rows = {}, []
    for label, values in samples.items():
        rate = spread([count * batch / value for value in values])
        ratio = spread([value / one for value, one in zip(values, samples["ours"], strict=True)])
        result[label] = {"images_per_s": rate, "ratio": ratio, "samples_s": values}
        rows.append([case, label, f"{rate[1]:,.4g}", ratio_text(ratio)])
    return result, rows


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Every case, printed as a table."""
    workers, results, rows = len(os.sched_getaffinity(0)), {}, []
    with tempfile.TemporaryDirectory() as folder:
        files = choose(arguments.images) if arguments.images else generate(Path(folder))
        for case in CASES[device.type]:
            if arguments.only and not any(word in case for word in arguments.only):
                continue
            results[case], more = measure(case, files, rounds_of(arguments, 5), workers, device)
            rows += more
    print(markdown(COLUMNS, rows))
    print(f"\nWall time, {workers} workers. Ratios: median (quartiles) over rounds.")
    return {"workers": workers, **results}
