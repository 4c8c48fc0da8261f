"""A recipe on N GPUs: its lanes, what a step sends, what a node reads, what a checkpoint holds up. Nothing is measured.

`make(plan, gpus)` computes it from a Plan, or raises where the recipe has too few lanes; `show(scale)` is its text.
Bytes are counted. Every time follows from a rule and from the numbers as sold that stand here, both printed with it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from deit_tract.common.errors import UserError
from deit_tract.common.text import GIB
from deit_tract.plan.cost import LAUNCHES, MFU, precision_name, speed
from deit_tract.plan.gpus import GPUS
from deit_tract.plan.plan import Plan
from deit_tract.plan.text import Lines, core_rate, pipeline_name
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.launch import lanes_of

NODE = 8  # GPUs a node
MOST = 2**16
BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce, after a first of 1 MiB: torch's DDP
IMAGE_BYTES = 115_000  # a file of ImageNet's training images: their tar's 148 GB over 1,281,167
DISKS = {"0.2 GB/s": 0.2e9, "1 GB/s": 1e9, "5 GB/s": 5e9}  # what one process writes; choice


class Link(NamedTuple):
    """Of a GPU inside a node, or of a whole node to the others."""

    bandwidth: float  # bytes/s each way, as sold
    step: float  # s a hop of a ring, as NCCL models it


USABLE = 0.8  # choice: of a link's bandwidth
INSIDE = {
    "NVLink 4": Link(450e9, 3.4e-6),
    "NVLink 3": Link(300e9, 3.4e-6),
    "PCIe 4 x16": Link(32e9, 5.7e-6),
}
BETWEEN = {
    "8x400Gb IB": Link(400e9, 14e-6),  # InfiniBand, a port a GPU
    "1x400Gb IB": Link(50e9, 14e-6),
    "100Gb Ethernet": Link(12.5e9, 14e-6),
}
FABRIC = INSIDE["NVLink 4"]  # inside each of several nodes
TREE_STEP, TREE_SHARE = (
    4e-6,
    0.92,
)  # NCCL's tree: s a hop inside a node, its part of the ring's bandwidth


@dataclass(frozen=True)
class ScaledPlan:
    """A plan on so many GPUs, one process each."""

    plan: Plan
    gpus: int
    lanes: list[int]  # of each process, computed one after another
    gradients: int  # bytes that every step sums over the processes
    gram: int  # bytes of Gram matrices summed beside them, with tract_gram "batch"

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / NODE)

    @property
    def per_node(self) -> int:
        """GPUs of a full node."""
        return min(self.gpus, NODE)

    @property
    def images(self) -> int:
        """Of a step, on the process with most lanes."""
        return self.lanes[0] * self.plan.recipe.batch.lane_size

    @property
    def links(self) -> dict[str, Link]:
        return BETWEEN if self.nodes > 1 else INSIDE if self.gpus > 1 else {}


# ---- computing -------------------------------------------------------------------------------------------------------


def scale_plan(plan: Plan, gpus: int) -> ScaledPlan:
    """The plan on `gpus` GPUs. Raises UserError naming the choices where there are more of them than lanes."""
    batch = plan.recipe.batch
    if not 1 <= gpus <= MOST:
        raise UserError("--gpus", f"{gpus} is no number of GPUs", f"give 1 to {MOST:,}")
    if gpus > batch.lanes:
        raise UserError(
            "--gpus", f"{gpus} processes for batch.lanes {batch.lanes}", _choices(batch, gpus)
        )
    lanes = [len(lanes_of(rank, gpus, batch.lanes)) for rank in range(gpus)]
    summed = plan.recipe.model.tract_gram == "batch"
    return ScaledPlan(plan, gpus, lanes, 4 * plan.cost.parameters, plan.cost.gram if summed else 0)


def _choices(batch, gpus: int) -> str:
    """What can be started as it is, and what would be another experiment."""
    even = [n for n in range(1, batch.lanes + 1) if batch.lanes % n == 0]
    listed = ", ".join(map(str, even))
    other = []
    if batch.size % gpus == 0:
        other.append(f"--set batch.lanes={gpus} (lanes of {batch.size // gpus} images)")
    other.append(
        f"--set batch.lanes={gpus} --set batch.size={gpus * batch.lane_size} (a larger batch)"
    )
    return f"start at most {batch.lanes} ({listed}: equal shares), or change the experiment: {' or '.join(other)}"


def all_reduce(scale: ScaledPlan, link: Link) -> float:
    """Seconds to sum a step's gradients and Gram matrices, bucket by bucket, by the faster of NCCL's ring and tree.

    Both as its model (src/graph/tuning.cc) has them: a ring sends 2 (N - 1) / N of the bytes in 2 (N - 1) hops, of
    which 2 (nodes - 1) lie between nodes; a tree sends twice the bytes in 2 (GPUs a node - 1 + log2 nodes) hops.
    """
    if scale.gpus == 1:
        return 0.0
    gpus, nodes, size = scale.gpus, scale.nodes, scale.gradients + scale.gram
    calls = 1 + max(0, math.ceil((scale.gradients - 2**20) / BUCKET)) + (scale.gram > 0)
    bandwidth = USABLE * min(link.bandwidth, FABRIC.bandwidth if nodes > 1 else link.bandwidth)
    inside = FABRIC.step if nodes > 1 else link.step
    hops = 2 * ((gpus - nodes) * inside + (nodes - 1) * link.step)
    ring = 2 * (gpus - 1) / gpus * size / bandwidth + calls * hops
    if nodes == 1:
        return ring
    hops = 2 * ((scale.per_node - 1) * TREE_STEP + math.log2(nodes) * link.step)
    return min(ring, 2 * size / (TREE_SHARE * bandwidth) + calls * hops)


def hours(
    scale: ScaledPlan, rate: float, link: Link | None, disk: float, looking: float
) -> dict[str, float] | None:
    """Hours of the run by part, each waiting for the others; None where its length is unknown.

    rate: images/s that a GPU (or its workers) trains; looking: what an image costs in evaluation, by that in training.
    """
    plan = scale.plan
    if plan.steps is None or plan.samples is None:
        return None
    looks = plan.evaluations * (2 if plan.recipe.ema.decay is not None else 1)
    seconds = {
        "lanes": plan.steps * scale.images / rate,
        "all-reduce": plan.steps * all_reduce(scale, link) if link else 0.0,
        "evaluation": looks * plan.samples[1] * looking / scale.gpus / rate,
        "saving": plan.saves * plan.checkpoint / disk,
    }
    return {part: value / 3600 for part, value in seconds.items()}


def rates(scale: ScaledPlan) -> dict[str, float]:
    """Images/s that each kind of GPU trains, of those that can run a lane."""
    plan, needed = scale.plan, sum(scale.plan.memory.values())
    rates = {
        name: speed(plan.recipe, plan.cost, gpu)
        for name, gpu in GPUS.items()
        if needed <= gpu.memory * GIB
    }
    return {name: rate for name, rate in rates.items() if rate}


def images_per_second(scale: ScaledPlan, rate: float, link: Link | None = None) -> float:
    """Of all GPUs together, that with most lanes setting the pace; each step waits for its all-reduce over `link`."""
    wait = all_reduce(scale, link) if link else 0.0
    return scale.plan.recipe.batch.size / (scale.images / rate + wait)


# ---- printing --------------------------------------------------------------------------------------------------------


def show_scaled(scale: ScaledPlan) -> str:
    """What so many GPUs change, as text; the assumptions last."""
    parts = [
        _what(scale),
        _steps(scale),
        _reading(scale),
        _saving(scale),
        _hours(scale),
        _assumptions(scale),
    ]
    title = f"{scale.plan.recipe.name} on {_count(scale.gpus, 'GPU')}: {scale.plan.recipe.about}"
    return "\n\n".join(
        [title, *("\n".join(f"{a:<15}{b}".rstrip() for a, b in part) for part in parts if part)]
    )


def _what(scale: ScaledPlan) -> Lines:
    recipe, most, least = scale.plan.recipe, scale.lanes[0], scale.lanes[-1]
    batch, steps = recipe.batch, scale.plan.steps
    turn = (
        "one forward and backward a step"
        if most == 1
        else f"{most} of them one after another a step"
    )
    if most != least:
        idle = 1 - batch.lanes / (most * scale.gpus)
        turn = f"{least} or {most} of them a step: {idle:.0%} of the GPUs' time is spent waiting"
    lines = [
        (
            "processes",
            f"{scale.gpus} on {_count(scale.nodes, 'node')}, at most {batch.lanes}: each has a lane or more",
        ),
        ("batch", f"{batch.size:,} images in {batch.lanes} lanes of {batch.lane_size}: {turn}"),
        ("run", f"{'unknown number of' if steps is None else f'{steps:,}'} steps"),
        ("gradients", f"{_mb(scale.gradients)} in float32, summed over the processes once a step"),
    ]
    if scale.plan.cost.gram:
        whole = f"{_mb(scale.plan.cost.gram)} in float64"
        lines.append(("Gram matrix", f"{whole}, summed as well" if scale.gram else
                      f"each lane's own, nothing is sent (tract_gram batch: {whole} a step)"))  # fmt: skip
    return lines


def _steps(scale: ScaledPlan) -> Lines:
    """A line a GPU: ms of its lanes, and of a step over each link with the part of it that is not waiting."""
    links = scale.links
    head = f"{'lanes':>9}" + "".join(f"{name:>18}" for name in links)
    sums = " " * 9 + "".join(f"{1e3 * all_reduce(scale, link):>18.2f}" for link in links.values())
    lines = [("step, ms", head)] + [("  all-reduce", sums)] * bool(links)
    for name, rate in rates(scale).items():
        alone = scale.images / rate
        whole = [alone + all_reduce(scale, link) for link in links.values()]
        lines.append(
            (
                f"  {name}",
                f"{1e3 * alone:>9.1f}"
                + "".join(f"{1e3 * t:>12.1f}{alone / t:>6.0%}" for t in whole),
            )
        )
    return lines


def _reading(scale: ScaledPlan) -> Lines:
    """What each node's GPUs ask of its cores and of the file system, and all nodes together, if they never wait."""
    recipe = scale.plan.recipe
    if not DATASETS[recipe.data.name].on_disk:
        return []
    known = recipe.data.name == "imagenet"
    head = (
        f"{'images/s':>9}{'cores':>18}"
        + f"{'files read/s':>18}{'MB/s' if known else '':>18}{'all nodes, GB/s':>18}"
    )
    lines = [("a node", head if known else head[:45])]
    for name, rate in rates(scale).items():
        per_node = images_per_second(scale, rate) * scale.per_node / scale.gpus
        cells = f"{per_node:>9,.0f}{math.ceil(per_node / core_rate(recipe)):>18,}{per_node:>18,.0f}"
        if known:
            read = per_node * IMAGE_BYTES
            cells += (
                f"{read / 1e6:>18,.0f}{images_per_second(scale, rate) * IMAGE_BYTES / 1e9:>18.2f}"
            )
        lines.append((f"  {name}", cells))
    return lines


def _saving(scale: ScaledPlan) -> Lines:
    plan = scale.plan
    times = ", ".join(f"{plan.checkpoint / rate:.2g} s at {name}" for name, rate in DISKS.items())
    return [
        (
            "checkpoint",
            f"{_mb(plan.checkpoint)}, written by process 0 while the others wait: {times}",
        )
    ]


def _hours(scale: ScaledPlan) -> Lines:
    """A line a GPU: the run's hours by part over the first link, and what the recipe's workers alone would take."""
    plan, link = scale.plan, next(iter(scale.links.values()), None)
    looking = plan.cost.forward / plan.cost.training

    def row(name: str, rate: float, looking: float) -> tuple[str, str]:
        parts = hours(scale, rate, link, DISKS["1 GB/s"], looking)
        cells = "".join(f"{value:>12.3g}" for value in (*parts.values(), sum(parts.values())))
        return f"  {name}", cells[3:]

    if plan.steps is None or plan.samples is None:
        return []
    names = ("lanes", "all-reduce", "evaluation", "saving", "together")
    lines = [("hours", "".join(f"{name:>12}" for name in names)[3:])]
    lines += [row(name, rate, looking) for name, rate in rates(scale).items()]
    if DATASETS[plan.recipe.data.name].on_disk:
        workers = plan.recipe.data.workers
        lines.append(row(f"{workers} workers", core_rate(plan.recipe) * max(workers, 1), 1.0))
    return lines


def _assumptions(scale: ScaledPlan) -> Lines:
    recipe, links = scale.plan.recipe, scale.links
    rules = [
        "nothing of this was measured on such machines",
        f"GPUs at {MFU:.0%} of their {precision_name(recipe)} peak, a lane in no less than "
        f"{LAUNCHES * 1e3:g} ms; optimizer and TrAct's solve are left out",
    ]
    if links:
        sold = ", ".join(f"{name} {link.bandwidth / 1e9:g}" for name, link in links.items())
        rules += [
            f"{sold}: GB/s of {'a node' if scale.nodes > 1 else 'a GPU'} each way as sold, {USABLE:.0%} of it used"
            + ("; NVLink 4 inside" if scale.nodes > 1 else ""),
            "all-reduce: the faster of NCCL's ring and tree, a call for each 25 MiB; the percentage is of the step",
            "none of it hidden behind the backward pass, where DDP hides what it can of the last lane's",
        ]
    if DATASETS[recipe.data.name].on_disk:
        size = f" of {IMAGE_BYTES / 1e3:g} kB" if recipe.data.name == "imagenet" else ""
        core = f"{core_rate(recipe):.0f} images/s a core ({pipeline_name(recipe)})"
        rules.append(f"{core}; every view reads its file{size} anew, from no cache")
    if scale.plan.saves is not None:
        rules.append(
            "hours: over the first link, checkpoints at 1 GB/s; the slower of GPUs and workers sets the pace"
        )
    return [("assumed" if i == 0 else "", rule) for i, rule in enumerate(rules)]


def _mb(number: float) -> str:
    return f"{number / 1e6:,.2f} MB" if number >= 1e6 else f"{number / 1e3:,.1f} kB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
