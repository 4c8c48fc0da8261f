"""Published numbers and curves by key, read from published.yaml, each with its source."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deit_tract.common.errors import UserError
from deit_tract.common.text import nearest

FILE = Path(__file__).with_name("published.yaml")


class Published(NamedTuple):
    """What is published of one training run; `epochs` and `top1` are empty where no curve is."""

    key: str
    about: str
    source: str  # of the curve
    results: list[dict[str, Any]]  # final numbers, each with `what` and `source`
    epochs: list[float]  # the curve's labels
    top1: list[float]  # percent, at each label
    tolerance: float  # epochs that a label may be off

    def near(self, epoch: float) -> tuple[float, float] | None:
        """The label nearest to an epoch and its top-1 (percent); None where it is farther than the tolerance."""
        points = zip(self.epochs, self.top1, strict=True)
        label, top1 = min(
            points, key=lambda point: abs(point[0] - epoch), default=(float("inf"), 0.0)
        )
        return (label, top1) if abs(label - epoch) <= self.tolerance else None


@cache
def read() -> dict[str, Any]:
    """All of published.yaml."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml 5 ms in place of 40
    return yaml.load(FILE.read_text(encoding="utf-8"), Loader=loader)


def find(key: str, where: str = "expect.published") -> Published:
    """The entry of a key. Raises UserError, with `where` the key was given, if there is none."""
    data = read()
    if key not in data["runs"]:
        what = f"nothing is published under '{key}'"
        raise UserError(
            where,
            what,
            nearest(key, data["runs"]) or "deit_tract/recipe/published.yaml has the keys",
        )
    entry = data["runs"][key]
    top1 = entry.get("top1", [])
    epochs = [entry["every"] * index for index in range(len(top1))]
    source = data["sources"].get(entry.get("source"), "")
    return Published(
        key, entry["about"], source, entry.get("results", []), epochs, top1, data["label_tolerance"]
    )
