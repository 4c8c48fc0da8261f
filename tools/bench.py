"""Speed and memory as ratios against baselines, measured side by side in one run.

    python tools/bench.py tract|data|optimizer|step|files|all [--rounds N] [--only WORD ...] [--json FILE]

Prints a Markdown table; --json also writes every sample. On a CPU: process time with one thread. On a GPU: CUDA events.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which counts memory, is chatty

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deit_tract import tract

MIB = 1 << 20


# ---- measuring -------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """One call: process time on a CPU (other programs do not count), events on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(
        20_000_000
    )  # some 10 ms, in which the host gets ahead: else its launches would be measured
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most memory that tensors made during a second call hold at one time."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def interleaved(
    runs: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every run in every round. Rounds go through all runs, so that what slows one slows all."""
    for run in runs.values():
        run(), run()
    samples = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(seconds(run, device))
    return samples


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def compare(samples: dict[str, list[float]], baseline: str) -> dict:
    """A case's figures: each run's milliseconds, and its ratio to the baseline round by round."""
    base = samples[baseline]
    return {
        name: {
            "ms": spread([1e3 * value for value in values]),
            "ratio": spread([value / one for value, one in zip(values, base, strict=True)]),
            "samples_ms": [round(1e3 * value, 4) for value in values],
        }
        for name, values in samples.items()
    }


# ---- reporting -------------------------------------------------------------------------------------------------------


def header(device: torch.device) -> dict:
    """Where and with what a run was made."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True, capture_output=True
    )
    packages = ("torch", "timm", "torch_tract")
    return {
        "command": "python tools/bench.py " + " ".join(sys.argv[1:]),
        "commit": git.stdout.strip() or "none",
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio_text(values: tuple[float, float, float]) -> str:
    low, middle, high = values
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


# ---- tract -----------------------------------------------------------------------------------------------------------

TRACT_CASES = {
    "ViT-S patches, b32@224": (lambda: nn.Conv2d(3, 384, 16, 16), (32, 3, 224, 224)),
    "ViT-B patches, b32@224": (lambda: nn.Conv2d(3, 768, 16, 16), (32, 3, 224, 224)),
    "CIFAR stem 3x3, b128@32": (lambda: nn.Conv2d(3, 64, 3, 1, 1, bias=False), (128, 3, 32, 32)),
    "ResNet stem 7x7/2, b8@224": (lambda: nn.Conv2d(3, 64, 7, 2, 3, bias=False), (8, 3, 224, 224)),
    "VGG conv1_1, b1@600x1000": (lambda: nn.Conv2d(3, 64, 3, 1, 1), (1, 3, 600, 1000)),
    "Linear 3072-384, b1024": (lambda: nn.Linear(3072, 384), (1024, 3072)),
    "Linear 3072-384, b4096": (lambda: nn.Linear(3072, 384), (4096, 3072)),
}
TRACT_STEPS = {
    "ViT-S step, b256@224": "deit3_small_patch16_224",
    "ViT-B step, b128@224": "deit3_base_patch16_224",
}


def tract_variants(layer: nn.Module) -> dict[str, nn.Module]:
    """The same weights as a plain layer, as ours, and as the paper's published package if it is installed."""
    variants = {"plain": layer, "ours": tract.TrAct(copy.deepcopy(layer))}
    try:
        import torch_tract
    except ImportError:
        return variants
    return {
        **variants,
        "torch_tract": torch_tract.TrAct(copy.deepcopy(layer)).to(layer.weight.device),
    }


def forward_backward(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> Callable[[], None]:
    def run():
        for parameter in layer.parameters():
            parameter.grad = None
        layer(x).backward(g)

    return run


def tract_layer(
    make: Callable[[], nn.Module], shape: tuple, rounds: int, device: torch.device
) -> dict:
    """Forward and backward of one layer, whose input needs no gradient."""
    layer, x = make().to(device), torch.randn(shape, device=device)
    g = torch.randn_like(layer(x))
    runs = {name: forward_backward(each, x, g) for name, each in tract_variants(layer).items()}
    result = compare(interleaved(runs, rounds, device), "plain")
    for name, run in runs.items():
        result[name]["peak_mib"] = peak_bytes(run, device) / MIB
    return result


def train_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def run():
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def tract_step(model: str, batch: int, rounds: int, device: torch.device) -> dict:
    """A whole training step in bfloat16: what the layer costs where it is used. torch_tract fails under autocast."""
    import timm

    x, y = (
        torch.randn(batch, 3, 224, 224, device=device),
        torch.randint(1000, (batch,), device=device),
    )
    plain = timm.create_model(model).to(device)
    ours = copy.deepcopy(plain)
    tract.apply_to_first_layer(ours)
    runs = {"plain": train_step(plain, x, y), "ours": train_step(ours, x, y)}
    result = compare(interleaved(runs, rounds, device), "plain")
    for name, run in runs.items():
        result[name]["peak_mib"] = peak_bytes(run, device) / MIB
    return result


def tract_row(case: str, result: dict) -> list[str]:
    plain, ours, theirs = (result.get(name) for name in ("plain", "ours", "torch_tract"))
    row = [
        case,
        f"{plain['ms'][1]:.2f}",
        ratio_text(ours["ratio"]),
        f"{ours['peak_mib'] - plain['peak_mib']:+.1f}",
    ]
    if theirs is None:
        return [*row, "-", "-", "-"]
    extra = (theirs["ms"][1] - plain["ms"][1]) / (ours["ms"][1] - plain["ms"][1])
    return [
        *row,
        ratio_text(theirs["ratio"]),
        f"{theirs['peak_mib'] - plain['peak_mib']:+.1f}",
        f"{extra:.1f}",
    ]


TRACT_COLUMNS = [
    "case", "plain, ms", "ours / plain", "ours, MiB over plain", "torch_tract / plain", "torch_tract, MiB over plain",
    "extra time, torch_tract / ours",
]  # fmt: skip


def bench_tract(arguments: argparse.Namespace, device: torch.device) -> dict:
    """The first layer with TrAct against the plain layer and the published package; on a GPU also whole steps."""
    results = {}
    wanted = lambda case: not arguments.only or any(word in case for word in arguments.only)  # noqa: E731
    for case, (make, shape) in TRACT_CASES.items():
        if wanted(case):
            results[case] = tract_layer(make, shape, rounds_of(arguments, 11), device)
    for case, model in TRACT_STEPS.items():
        if wanted(case) and device.type == "cuda":
            batch = int(case.split(" b")[1].split("@")[0])
            results[case] = tract_step(model, batch, rounds_of(arguments, 11), device)
    print(markdown(TRACT_COLUMNS, [tract_row(case, result) for case, result in results.items()]))
    print(
        "\nRatios: median (quartiles) over rounds. MiB: peak of the tensors made during forward and backward."
    )
    return results


# In files of their own, which import from this one


def bench_data(arguments: argparse.Namespace, device: torch.device) -> dict:
    from tools import bench_data

    return bench_data.run(arguments, device)


def bench_optimizer(arguments: argparse.Namespace, device: torch.device) -> dict:
    from tools import bench_optimizer

    return bench_optimizer.run(arguments, device)


def bench_step(arguments: argparse.Namespace, device: torch.device) -> dict:
    from tools import bench_step

    return bench_step.run(arguments, device)


def bench_files(arguments: argparse.Namespace, device: torch.device) -> dict:
    from tools import bench_files

    return bench_files.run(arguments, device)


BENCHES = {
    "tract": bench_tract, "data": bench_data, "optimizer": bench_optimizer, "step": bench_step, "files": bench_files,
}  # fmt: skip


def rounds_of(arguments: argparse.Namespace, usual: int) -> int:
    return arguments.rounds or usual


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=[*BENCHES, "all"])
    parser.add_argument(
        "--rounds", type=int, help="times every variant is measured (default: 11, whole steps 7)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="cases whose name contains one of these"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="data, files: JPEGs (default: 200 made ones)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="whole steps compiled, too, as always on a GPU"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 2:
        parser.error("--rounds: a spread needs two or more")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = header(device)
    print("\n".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    results = {}
    for name in BENCHES if arguments.bench == "all" else [arguments.bench]:
        results[name] = BENCHES[name](arguments, device)
        print()
        if arguments.json:  # after each, so that none is lost if a later one fails
            arguments.json.write_text(json.dumps({"about": about, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
