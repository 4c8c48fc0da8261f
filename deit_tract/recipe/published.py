"""Published numbers and curves by key, read from published.yaml, each with its source."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deit_tract.common.errors import UserError
from deit_tract.common.text import nearest, short
from deit_tract.recipe.source import display

FILE = Path(__file__).with_name("published.yaml")


class Published(NamedTuple):
    """What is published of one training run; `epochs` and `top1` are empty if no curve is."""

    key: str
    about: str
    source: str  # of the curve
    results: list[dict[str, Any]]  # final numbers, each with `what` and `source`
    epochs: list[float]  # the curve's labels
    top1: list[float]  # percent, at each label
    tolerance: float  # epochs that a label may be off

    def near(self, epoch: float) -> tuple[float, float] | None:
        """Return the label nearest to an epoch and its top-1 (percent); None if it is too far."""
        points = zip(self.epochs, self.top1, strict=True)
        nothing = (float("inf"), 0.0)
        label, top1 = min(points, key=lambda point: abs(point[0] - epoch), default=nothing)
        return (label, top1) if abs(label - epoch) <= self.tolerance else None


@cache
def read() -> dict[str, Any]:
    """Return all of published.yaml."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml 5 ms in place of 40
    return yaml.load(FILE.read_text(encoding="utf-8"), Loader=loader)


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Return the published runs by key; a row of the CIFAR-100 table is `cifar100/MODEL`."""
    table = read()["cifar100"]
    entries = dict(read()["runs"])
    size = len(table["columns"])
    for model, numbers in table["models"].items():
        results = {}
        for number, arm in enumerate(table["arms"]):
            row = zip(table["columns"], numbers[number * size :], strict=False)
            results[arm] = {"what": arm, **dict(row), "source": table["source"]}
        entries[f"cifar100/{model}"] = {"about": f"{model} on CIFAR-100", "results": results}
    return entries


def find(key: str, where: str = "expect.published") -> Published:
    """Return the entry of a key, ENTRY or ENTRY/RESULT.

    Raises UserError, with `where` the key was given, if there is none.
    """
    name = key if key in entries() else key.rpartition("/")[0]
    entry = entries().get(name, {})
    results = entry.get("results", {})
    if not entry or (name != key and key.removeprefix(f"{name}/") not in results):
        keys = [f"{name}/{one}" for name in entries() for one in entries()[name].get("results", {})]
        instead = nearest(key, [*entries(), *keys]) or f"{display(FILE)} has the keys"
        raise UserError(where, f"nothing is published under '{short(key)}'", instead)
    top1 = entry.get("top1", [])
    return Published(
        key=name,
        about=entry["about"],
        source=read()["sources"].get(entry.get("source"), ""),
        results=list(results.values()),
        epochs=[entry["every"] * index for index in range(len(top1))],
        top1=top1,
        tolerance=read()["label_tolerance"],
    )


def find_result(key: str, where: str = "expect.published") -> dict[str, Any]:
    """Return the numbers of ENTRY/RESULT with their `what` and `source`; raises as `find` does."""
    name = find(key, where).key
    return entries()[name].get("results", {}).get(key.removeprefix(f"{name}/"), {})
