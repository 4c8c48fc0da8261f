"""Measuring several variants side by side, and reporting them as ratios to a baseline."""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from deit_tract.recipe.source import ROOT

MIB = 2**20
RATIOS = "Ratios: median (quartiles) over rounds."
Run = Callable[[], None]
Quartiles = tuple[float, float, float]  # lower quartile, median, upper quartile


def seconds(run: Run, device: torch.device) -> float:
    """Time one call: process time on a CPU (other programs do not count), CUDA events on a GPU."""
    if device.type == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # about 10 ms in which the host gets ahead, so that its launches are not measured
    torch.cuda._sleep(20_000_000)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most memory that tensors made during a second call hold at one time."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to the terminal
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda change: change.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def interleaved(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of every run in every round.

    Each round goes through all runs, so that whatever slows one slows all.
    """
    for run in runs.values():
        run()
        run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(seconds(run, device))
    return samples


def spread(values: list[float]) -> Quartiles:
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def ratios(values: list[float], base: list[float]) -> Quartiles:
    return spread([value / one for value, one in zip(values, base, strict=True)])


def compare(samples: dict[str, list[float]]) -> dict:
    """Return each run's milliseconds and its ratio to the first run."""
    base = next(iter(samples.values()))
    return {
        name: {
            "ms": spread([1e3 * value for value in values]),
            "ratio": ratios(values, base),
            "samples_ms": [round(1e3 * value, 4) for value in values],
        }
        for name, values in samples.items()
    }


def compare_with_peaks(runs: dict[str, Run], rounds: int, device: torch.device) -> dict:
    """Compare runs by time, and add the peak memory of each."""
    result = compare(interleaved(runs, rounds, device))
    for name, run in runs.items():
        result[name]["peak_mib"] = peak_bytes(run, device) / MIB
    return result


# ---- arguments and reporting ---------------------------------------------------------------------


def wanted(case: str, arguments: argparse.Namespace) -> bool:
    return not arguments.only or any(word in case for word in arguments.only)


def rounds_of(arguments: argparse.Namespace, usual: int) -> int:
    return arguments.rounds or usual


def header(device: torch.device) -> dict:
    """Return where and with what a bench is run."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, text=True, capture_output=True).stdout.strip()
    return {
        "command": "python tools/bench.py " + " ".join(sys.argv[1:]),
        "commit": commit or "none",
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "timm", "torch_tract")},
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def ratio_text(values: Quartiles) -> str:
    low, middle, high = values
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"
