"""A recipe on N GPUs as text: lanes, what a step sends, what a node reads, saving, hours.

Bytes are counted. Hours leave out the network: what a step waits for the others was not measured.
"""

import math

from deit_tract.common.text import plural
from deit_tract.plan.cost import core_rate
from deit_tract.plan.plan import Plan, gpu_rates, hours
from deit_tract.plan.text import Lines, core_rule, gpu_rule, labelled_table, layout, listed_under
from deit_tract.recipe.datasets import DATASETS

NODE = 8  # GPUs per node
IMAGE_BYTES = 115_000  # per training image of ImageNet: its tar's 148 GB over 1,281,167 images
DISK = 1e9  # bytes/s that one process writes; choice


def show_scaled(plan: Plan, gpus: int) -> str:
    """What `gpus` GPUs change, one process each; `plan` was made for them."""
    title = f"{plan.recipe.name} on {plural(gpus, 'GPU')}: {plan.recipe.about}"
    parts = [_launch(plan, gpus), _reading(plan, gpus), _hours(plan, gpus), _assumptions(plan)]
    return layout(title, parts)


def step_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes that every step sums over the processes: gradients, and the batch's Gram matrices."""
    summed = plan.recipe.model.tract_gram == "batch"
    return 4 * plan.cost.parameters, plan.cost.gram if summed else 0


def images_per_second(plan: Plan, gpus: int, rate: float) -> float:
    """Images/s of all GPUs together if each trains `rate`; that with most lanes sets the pace."""
    batch = plan.recipe.batch
    return rate * batch.lanes / max(plan.shares[gpus])


def _launch(plan: Plan, gpus: int) -> Lines:
    batch, steps = plan.recipe.batch, plan.steps
    most, least = max(plan.shares[gpus]), min(plan.shares[gpus])
    each = f"{most} of them one after another per step"
    if most == 1:
        each = "one forward and backward pass per step"
    elif most != least:
        idle = 1 - batch.lanes / (most * gpus)
        each = f"{least} or {most} of them per step: {idle:.0%} of the GPUs' time is spent waiting"
    nodes = plural(math.ceil(gpus / NODE), "node")
    parts = f"{plural(batch.lanes, 'lane')} of {batch.lane_size}"
    gradients, gram = step_bytes(plan)
    lines = [
        ("processes", f"{gpus:,} on {nodes}, at most {batch.lanes}: each needs a lane"),
        ("batch", f"{batch.size:,} images in {parts}: {each}"),
        ("run", f"{'unknown number of' if steps is None else f'{steps:,}'} steps"),
        ("gradients", f"{_size(gradients)} in float32, summed over the processes once per step"),
    ]
    if gram:
        lines.append(("Gram matrix", f"{_size(gram)} in float64, summed as well"))
    elif plan.cost.gram:
        other = f"tract_gram batch: {_size(plan.cost.gram)} in float64 per step"
        lines.append(("Gram matrix", f"each lane's own, nothing is sent ({other})"))
    saving = f"written by process 0 while the others wait, {plan.checkpoint / DISK:.2g} s"
    return [*lines, ("checkpoint", f"{_size(plan.checkpoint)}, {saving}")]


def _reading(plan: Plan, gpus: int) -> Lines:
    """What each node's GPUs ask of its cores and of the file system if they never wait."""
    recipe = plan.recipe
    if not DATASETS[recipe.data.name].on_disk:
        return []
    sized = recipe.data.name == "imagenet"
    head = ["images/s", "cores"] + (["MB/s", "all nodes, GB/s"] if sized else [])
    rows = {}
    for name, rate in gpu_rates(plan).items():
        if isinstance(rate, str):
            continue
        together = images_per_second(plan, gpus, rate)
        per_node = together * min(gpus, NODE) / gpus
        cells = [f"{per_node:,.0f}", f"{math.ceil(per_node / core_rate(recipe)):,}"]
        if sized:
            cells.append(f"{per_node * IMAGE_BYTES / 1e6:,.0f}")
            cells.append(f"{together * IMAGE_BYTES / 1e9:.2f}")
        rows[name] = cells
    return labelled_table("per node", head, rows)


def _hours(plan: Plan, gpus: int) -> Lines:
    """One line per GPU type: hours of training, evaluation and saving."""
    if plan.steps is None or plan.samples is None:
        return []

    def row(rate: float, eval_cost: float) -> list[str]:
        saving = plan.saves * plan.checkpoint / DISK / 3600
        parts = [*hours(plan, rate, gpus, eval_cost), saving]
        return [f"{value:.3g}" for value in (*parts, sum(parts))]

    eval_cost = plan.cost.forward / plan.cost.training
    rows = {
        name: rate if isinstance(rate, str) else row(rate, eval_cost)
        for name, rate in gpu_rates(plan).items()
    }
    if DATASETS[plan.recipe.data.name].on_disk:
        workers = plan.recipe.data.workers
        rows[f"{workers} workers"] = row(core_rate(plan.recipe) * max(workers, 1), 1.0)
    return labelled_table("hours", ["training", "evaluation", "saving", "together"], rows)


def _assumptions(plan: Plan) -> Lines:
    recipe = plan.recipe
    rules = [
        "nothing of this was measured on such machines",
        f"{gpu_rule(recipe)}; optimizer and TrAct's solve are left out",
        "the network is left out: how long a step waits for the sum of the gradients",
    ]
    if DATASETS[recipe.data.name].on_disk:
        size = f" of {IMAGE_BYTES / 1e3:g} kB" if recipe.data.name == "imagenet" else ""
        rules.append(f"{core_rule(recipe)}; every view reads its file{size}, from no cache")
    if plan.saves is not None:
        disk = f"checkpoints at {DISK / 1e9:g} GB/s"
        rules.append(f"hours: {disk}; the slower of GPUs and workers sets the pace")
    return listed_under("assumed", rules)


def _size(number: float) -> str:
    return f"{number / 1e6:,.2f} MB" if number >= 1e6 else f"{number / 1e3:,.1f} kB"
