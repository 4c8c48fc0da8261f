"""Images/s that one core makes ready: held as one tensor (data.resident) against decoded and cropped one by one.

python tools/bench_resident.py DIR [--data cifar10|folder]

Both ways make the same batches of the recipe cifar10_cnn_8ep_sgd, in turn, and are compared to the bit.
"""

import sys
import time
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from deit_tract.cli import Parser, script
from deit_tract.data import resident
from deit_tract.data.sets.load import load_images
from deit_tract.data.stream import Stream
from deit_tract.data.transforms import augment
from deit_tract.recipe.resolve import load_recipe

BATCHES = 8  # a round


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "dir", metavar="DIR", help="CIFAR-10's folder, or class folders of 32 px images"
    )
    parser.add_argument(
        "--data", default="cifar10", choices=("cifar10", "folder"), help="what lies there"
    )
    parser.add_argument("--rounds", default=9, type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = [f"data.name={arguments.data}", "data.verify=false"]
    recipe = load_recipe("cifar10_cnn_8ep_sgd", settings, arguments.dir)
    images, device = load_images(recipe.data).train, torch.device("cpu")
    stream = Stream(len(images), recipe.batch.lanes, recipe.batch.lane_size)
    start = time.process_time()
    held = resident.Resident(images, recipe, recipe.augment)
    print(
        f"all {len(images):,} images decoded and held in {time.process_time() - start:.1f} s of CPU time, ",
        end="",
    )
    print(f"{held.pixels.numel() / 2**20:.0f} MiB")
    ways = {"resident": held, "one by one": images}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        keys, made = [stream.views(BATCHES * number + step, 0) for step in range(BATCHES)], []
        for name, way in ways.items():
            start = time.process_time()
            made.append(
                list(resident.batches(way, augment.train_transform(recipe), False, keys, 0, device))
            )
            rates[name].append(BATCHES * recipe.batch.size / (time.process_time() - start))
        pairs = zip(*made, strict=True)
        assert all(
            torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)
        )
    for name, values in rates.items():
        low, _, high = quantiles(values, n=4)
        print(f"{name:<12}{median(values):>10,.0f} images/s (quartiles {low:,.0f} to {high:,.0f})")
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    print(
        f"ratio {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}), {arguments.rounds} rounds, one thread"
    )


if __name__ == "__main__":
    script(main)
