"""Speed and memory as ratios against baselines, measured side by side in one run.

    python tools/bench.py tract|data|optimizer|step|files|resident|all [--rounds N] [--json FILE]

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
from tools.benches import data, files, optimizer, resident, step, tract
from tools.benches.measure import header

BENCHES = {
    "tract": "the first layer with TrAct against the plain one and the published package",
    "data": "work per training image, JPEG to batch, against DeiT's and timm's pipelines",
    "optimizer": "LAMB's step against timm's",
    "step": "a training step against DeiT's and timm's, shared lanes, drop path",
    "files": "training from JPEGs, workers included",
    "resident": "images held as one tensor against decoding them one by one",
}


RUN = {
    "tract": tract.run,
    "data": data.run,
    "optimizer": optimizer.run,
    "step": step.run,
    "files": files.run,
    "resident": resident.run,
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
    add("--compile", "step: also compiled, as always on a GPU", action="store_true")
    images = "resident: CIFAR-10, or class folders of 32 px images"
    add_shared(arguments, "--data-dir", help=images)
    add("--data", "resident: what is there", default="cifar10", choices=("cifar10", "folder"))
    add_shared(arguments, "--json")
    return arguments


def main() -> None:
    arguments = parser().parse_args()
    names = [arguments.bench]
    if arguments.bench == "all":
        names = [name for name in BENCHES if name != "resident" or arguments.data_dir]
    if "resident" in names and not arguments.data_dir:
        parser().error("resident needs --data-dir DIR")
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
