"""Whether two runs are the same to the last bit: logged numbers, weights, averaged weights."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from deit_tract.common.errors import UserError
from deit_tract.common.text import listed, plural
from deit_tract.train import checkpoint
from deit_tract.train.records import read_metrics

MACHINE = {"images_per_s", "data_wait", "mfu", "memory_gib"}  # of the machine, not of the run


class Verdict(NamedTuple):
    """A line about one part of two runs."""

    line: str
    equal: bool


def compare_bitwise(one: Path, other: Path) -> list[Verdict]:
    """Compare the logged numbers and the newest checkpoint that both runs have.

    Each verdict names the first difference. Raises UserError if there is no such checkpoint.
    """
    verdicts = [_logged(one, other)]
    steps = [checkpoint.steps(run / checkpoint.FOLDER) for run in (one, other)]
    common = set.intersection(*map(set, steps))
    if not common:
        have = " and ".join(listed([str(step) for step in found]) or "none" for found in steps)
        what = f"no checkpoint of the same step as {other}: they have {have}"
        raise UserError(one, what, "train both to the same step")
    step = max(common)
    folders = [checkpoint.find(run, step) for run in (one, other)]
    files = {file.name for folder in folders for file in folder.glob("*.safetensors")}
    for name in sorted(files, key=lambda name: (name != "model.safetensors", name)):
        title = "weights" if name == "model.safetensors" else f"{Path(name).stem} weights"
        verdicts.append(_file(f"{title} at step {step:,}", *(f / name for f in folders)))
    return verdicts


def _logged(one: Path, other: Path) -> Verdict:
    records = [[_of_the_run(record) for record in read_metrics(run)] for run in (one, other)]
    for left, right in zip(*records, strict=False):
        for key in [*left, *(key for key in right if key not in left)]:
            values = [json.dumps(record.get(key, "missing")) for record in (left, right)]
            if values[0] != values[1]:
                place = f"first at step {left['step']:,}: {key} {values[0]} and {values[1]}"
                return Verdict(f"logged numbers: differ, {place}", False)
    counts = [len(found) for found in records]
    if counts[0] != counts[1]:
        what = f"equal in {min(counts):,} records, but there are {counts[0]:,} and {counts[1]:,}"
        return Verdict(f"logged numbers: {what}", False)
    return Verdict(f"logged numbers: equal, {plural(counts[0], 'record')}", True)


def _of_the_run(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in MACHINE}


def _file(title: str, one: Path, other: Path) -> Verdict:
    """Compare two files of tensors, one tensor at a time."""
    for file, there in ((one, other), (other, one)):
        if not file.is_file():
            return Verdict(f"{title}: only {there.parent} has them", False)
    count = 0
    with safe_open(one, "pt") as left, safe_open(other, "pt") as right:
        names = sorted(set(left.keys()) | set(right.keys()))
        for name in names:
            if name not in left.keys() or name not in right.keys():  # noqa: SIM118 (no container)
                owner = one if name in left.keys() else other  # noqa: SIM118
                return Verdict(f"{title}: differ, only {owner.parent} has {name}", False)
            tensors = (left.get_tensor(name), right.get_tensor(name))
            difference = _difference(*tensors)
            if difference is not None:
                return Verdict(f"{title}: differ, first in {name}{difference}", False)
            count += tensors[0].numel()
    return Verdict(f"{title}: equal, {count:,} numbers", True)


def _difference(one: Tensor, other: Tensor) -> str | None:
    """Where two tensors have other bits; None if nowhere. nan equals nan, 0 does not equal -0."""
    kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (one, other)]
    if kinds[0] != kinds[1]:
        return f": {kinds[0]} and {kinds[1]}"
    bits = [tensor.reshape(-1, 1).view(torch.uint8) for tensor in (one, other)]
    places = (bits[0] != bits[1]).any(1).nonzero().flatten()
    if not len(places):
        return None
    first = int(places[0])
    index = [int(place) for place in torch.unravel_index(torch.tensor(first), one.shape)]
    values = [repr(tensor.flatten()[first].item()) for tensor in (one, other)]
    return f"{index}: {values[0]} and {values[1]} ({len(places):,} of {one.numel():,} numbers)"
