"""A plan as text: every estimate is printed with its rule."""

import math

from deit_tract.common.text import GIB, format_bytes
from deit_tract.plan.cost import LAUNCHES, MFU, image_shape, precision_name, speed
from deit_tract.plan.gpus import GPUS
from deit_tract.plan.plan import CORE_RATE, FAST, PROCESSES, Plan, hours
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.settings.recipe import Recipe


def show_plan(plan: Plan) -> str:
    """The plan as text, each estimate with what it assumes."""
    parts = [_what(plan), _when(plan), _rates(plan), _where(plan), _memory(plan), _hours(plan)]
    parts.append([("notes" if i == 0 else "", note) for i, note in enumerate(plan.notes)])
    title = f"{plan.recipe.name}: {plan.recipe.about}"
    return "\n\n".join(
        [title, *("\n".join(f"{a:<15}{b}".rstrip() for a, b in part) for part in parts if part)]
    )


Lines = list[tuple[str, str]]  # label, text


def _what(plan: Plan) -> Lines:
    recipe, cost, samples = plan.recipe, plan.cost, plan.samples
    model, data = recipe.model, recipe.data
    on = (
        f"TrAct {model.tract:g} on {cost.first_layer}"
        if model.tract
        else f"no TrAct, first layer {cost.first_layer}"
    )
    flops = f"{cost.forward / 1e9:.4g} GFLOP forward, {cost.training / 1e9:.4g} GFLOP training"
    rule = "" if model.train == "head" else " (3 x forward, less the first layer's input gradient)"
    size = f"{cost.parameters:,} parameters"
    if cost.trainable != cost.parameters:
        size += f", {cost.trainable:,} of them trained"
    counts = (
        f"{samples[0]:,} training and {samples[1]:,} validation images"
        if samples
        else "unknown number of images"
    )
    lines = [
        ("model", f"{model.name}, {size}, {on}, drop path {model.drop_path:g}"),
        ("per image", f"{flops}{rule}"),
    ]
    if cost.tract:
        lines.append(
            ("", f"TrAct's Gram matrix: {cost.tract / 1e9:.2g} GFLOP at most, not in the above")
        )
    return [
        *lines,
        (
            "data",
            f"{data.name}: {counts}, {data.classes} classes, {' x '.join(map(str, image_shape(recipe)))} px",
        ),
    ]


def _when(plan: Plan) -> Lines:
    recipe, stream, steps, size = plan.recipe, plan.stream, plan.steps, plan.recipe.batch.size
    if stream is None:
        return [("run", f"{steps or 'unknown number of'} steps of {size:,} images")]
    drawn = stream.steps_per_epoch * size
    different = min(stream.samples, math.ceil(drawn / stream.repeats))
    each = f", {stream.repeats} views each of {different:,}" if stream.repeats > 1 else ""
    epochs, total = steps / stream.steps_per_epoch, plan.cost.training * steps * size
    return [
        ("epoch", f"{stream.steps_per_epoch:,} steps of {size:,} = {drawn:,} images{each}"),
        ("run", f"{epochs:g} epochs, {steps:,} steps, {steps * size:,} images, {total:.3g} FLOP"),
        ("evaluations", f"{plan.evaluations:,}" + (" (weights and EMA)" if recipe.ema.decay is not None else "")),
        ("checkpoints", f"{plan.saves:,} of {format_bytes(plan.checkpoint)}: {format_bytes(plan.saves * plan.checkpoint)} written, "
                        f"{format_bytes(plan.kept)} kept in {plan.folder}"),
    ]  # fmt: skip


def _rates(plan: Plan) -> Lines:
    """The learning rates as a table."""
    head = [("learning rate", f"{'epoch':>6}{'step':>12}{'lr':>14}")] if plan.rates else []
    return head + [("", f"{epoch:>6,}{step:>12,}{rate:>14.5g}") for epoch, step, rate in plan.rates]


def _where(plan: Plan) -> Lines:
    batch = plan.recipe.batch
    lines = [
        (
            "batch",
            f"{batch.size:,} images in {batch.lanes} lanes of {batch.lane_size}, summed before each step",
        )
    ]
    for processes, lanes in plan.shares.items():
        share = f"{lanes[0]}" if lanes[0] == lanes[-1] else f"{lanes[-1]} or {lanes[0]}"
        each = f"{share} lane{'s' * (share != '1')}" + " each" * (processes > 1)
        lines.append(
            (
                "",
                f"{processes} process{'es' * (processes > 1):<2}  {each}"
                + ", in turn" * (share != "1"),
            )
        )
    if batch.lanes < max(PROCESSES):
        lines.append(("", f"more than {batch.lanes} are refused"))
    return lines


def _memory(plan: Plan) -> Lines:
    rules = {
        "optimizer": f"{plan.recipe.optim.name}, float32",
        "activations": "what autograd saves in a forward of one lane, or batch.lanes_per_forward",
        "TrAct": "patches copied at once, Gram matrix, its factor, a solution",
        "allowance": "1 GiB and 10 % for the CUDA context and what comes and goes (a guess)",
    }
    parts = [(name, size) for name, size in plan.memory.items() if size]
    lines = [("memory", f"{format_bytes(sum(plan.memory.values()))} on each GPU, an estimate:")]
    return lines + [
        ("", f"{name:<12}{format_bytes(size):>11}  {rules.get(name, '')}") for name, size in parts
    ]


def core_rate(recipe: Recipe) -> float:
    """Images/s that one core prepares, each view from its own file: as where no two lanes share a process."""
    if recipe.data.pipeline == "exact":
        return CORE_RATE
    return CORE_RATE * FAST["RandAugment" if recipe.augment.rand_augment else "colours"]


def pipeline_name(recipe: Recipe) -> str:
    return "DeiT's pipeline" if recipe.data.pipeline == "exact" else "data.pipeline fast"


def _hours(plan: Plan) -> Lines:
    """A line a GPU: hours on so many of them, images/s that one takes, and the cores that prepare those."""
    recipe, counts, needed = plan.recipe, list(plan.shares), sum(plan.memory.values())
    on_disk = DATASETS[recipe.data.name].on_disk and not recipe.data.resident
    core = core_rate(recipe)

    def row(name: str, rate: float, looking: float) -> tuple[str, str]:
        times = [hours(plan, rate, n, looking) for n in counts]
        cells = "".join(f"{'unknown' if time is None else f'{time:.3g}':>9}" for time in times)
        return f"  {name}", f"{cells}{rate:>12,.0f}" + f"{math.ceil(rate / core):>8,}" * on_disk

    heads = [f"{n} GPU{'s' * (n > 1)}" for n in counts]
    lines = [
        (
            "hours",
            "".join(f"{head:>9}" for head in heads)
            + f"{'images/s':>12}"
            + f"{'cores':>8}" * on_disk,
        )
    ]
    for name, gpu in GPUS.items():
        rate = speed(recipe, plan.cost, gpu)
        if not rate or needed > gpu.memory * GIB:
            lines.append(
                (
                    f"  {name}",
                    f"  {f'a lane needs more than {gpu.memory} GiB' if rate else 'has no bf16'}",
                )
            )
        else:
            lines.append(row(name, rate, plan.cost.forward / plan.cost.training))
    if on_disk:
        lines.append(row(f"{recipe.data.workers} workers", core * max(recipe.data.workers, 1), 1.0))
    rules = [
        f"GPUs at {MFU:.0%} of their {precision_name(recipe)} peak, "
        f"a lane in no less than {LAUNCHES * 1e3:g} ms (assumptions)"
    ]
    if on_disk:
        name = pipeline_name(recipe)
        rules.append(
            f"cores and workers at {core:.0f} images/s each: {name} on ImageNet (an estimate)"
        )
        rules.append(
            "the slower of GPU and workers sets the pace; images/s and cores are for one GPU"
        )
    return lines + [("", rule) for rule in rules]
