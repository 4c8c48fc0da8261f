"""Images/s that one core prepares, held as one tensor (data.resident) or read one by one.

Both variants make the same batches of the recipe cifar10_cnn_8ep_sgd, in turn, and are compared bit
for bit.
"""

import argparse
import time

import torch

from deit_tract.common.text import table
from deit_tract.data.feed import Feed, Source, make_feed
from deit_tract.data.loader import Batch
from deit_tract.data.resident import Resident
from deit_tract.data.sets.load import load_splits
from deit_tract.data.stream import Stream
from deit_tract.data.transforms import augment
from deit_tract.recipe.resolve import load_recipe
from tools.benches.measure import MIB, RATIOS, ratio_text, ratios, rounds_of, spread

STEPS = 8  # in a round
CPU = torch.device("cpu")


def check_equal(one: list[Batch], other: list[Batch]) -> None:
    for batch, same in zip(one, other, strict=True):
        assert all(torch.equal(batch[name], same[name]) for name in batch)


def run(arguments: argparse.Namespace, device: torch.device) -> dict:
    """Measure both variants on the CPU and print their rates."""
    settings = [f"data.name={arguments.data}", "data.verify=false"]
    recipe = load_recipe("cifar10_cnn_8ep_sgd", settings, arguments.data_dir)
    images = load_splits(recipe.data).train
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
    for number in range(rounds_of(arguments, 9)):
        steps = range(STEPS * number, STEPS * (number + 1))
        made = []
        for name, variant in variants.items():
            start = time.process_time()
            made.append(list(variant.batches(steps)))
            samples[name].append(time.process_time() - start)
        check_equal(*made)
    results, rows = {"decoding_s": decoding, "mib": size}, []
    for name, values in samples.items():
        rate = spread([STEPS * recipe.batch.size / value for value in values])
        ratio = ratios(values, samples["resident"])
        results[name] = {"images_per_s": rate, "ratio": ratio, "samples_s": values}
        rows.append([name, f"{rate[1]:,.0f}", ratio_text(ratio)])
    print(table(("variant", "images/s", "time / resident"), rows))
    print(f"\n{RATIOS} One thread, process time.")
    return results
