"""Speed and memory as ratios against baselines, measured side by side in one run.

    python tools/bench.py BENCH|all [--rounds N] [--json FILE]

Prints a Markdown table; --json also writes every sample. On a CPU: process time with one thread.
On a GPU: CUDA events.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from deit_tract.cli import Parser, script
from deit_tract.results.arguments import add_shared, path, whole
from tools.benches import data, files, optimizer, resident, runtime, step, tract
from tools.benches.measure import header

BENCHES = {
    "tract": "the first layer with TrAct against the plain one and the published package",
    "data": "work per training image, JPEG to batch, against DeiT's and timm's pipelines",
    "optimizer": "LAMB's step against timm's",
    "step": "a training step against DeiT's and timm's, shared lanes, drop path",
    "files": "training from JPEGs, workers included",
    "resident": "32 px images held as one tensor: batches, and training against a plain loop",
    "runtime": "complete steps without TrAct, with it and with the published package",
}


RUN = {
    "tract": tract.run,
    "data": data.run,
    "optimizer": optimizer.run,
    "step": step.run,
    "files": files.run,
    "resident": resident.run,
    "runtime": runtime.run,
}


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    benches = "; ".join(f"{name}: {what}" for name, what in BENCHES.items())
    add("bench", benches, choices=[*BENCHES, "all"])
    rounds = "times every variant is measured, for quartiles (default: 5 to 11)"
    add("--rounds", rounds, metavar="N", type=whole("--rounds", 2, 10_000))
    add("--only", "cases whose name contains one of these", nargs="+", metavar="WORD")
    add(
        "--images",
        "data, files: JPEGs (default: 200 made ones)",
        type=path("--images"),
        metavar="DIR",
    )
    add("--compile", "step, resident: also compiled, as always on a GPU", action="store_true")
    images = "resident: CIFAR-10, or class folders of 32 px images (default: 2,048 made ones)"
    add_shared(arguments, "--data-dir", help=images)
    add("--data", "resident: what is there", default="cifar10", choices=("cifar10", "folder"))
    add_shared(arguments, "--json")
    return arguments


def main() -> None:
    arguments = parser().parse_args()
    names = [*BENCHES] if arguments.bench == "all" else [arguments.bench]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = header(device)
    print("\n".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    results = {}
    for name in names:
        results[name] = RUN[name](arguments, device)
        print()
        if arguments.json:  # after each, so that none is lost if a later one fails
            arguments.json.write_text(json.dumps({"about": about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
