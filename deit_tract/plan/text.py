"""A plan as text: every estimate is printed with its rule."""

import math

from deit_tract.common.text import align, format_bytes, plural
from deit_tract.plan.cost import LAUNCHES, MFU, core_rate, image_shape
from deit_tract.plan.plan import PROCESSES, Plan, gpu_rates, hours
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.settings.recipe import Recipe

Lines = list[tuple[str, str]]  # label, text


def show_plan(plan: Plan) -> str:
    """The plan as text, each estimate with what it assumes."""
    title = f"{plan.recipe.name}: {plan.recipe.about}"
    parts = [_model(plan), _run(plan), _rates(plan), _batch(plan), _memory(plan), _hours(plan)]
    return layout(title, [*parts, listed_under("notes", plan.notes)])


# ---- layout, also of the plan for N GPUs ---------------------------------------------------------


def layout(title: str, parts: list[Lines]) -> str:
    """A title and parts with a label before each line, an empty line between them."""
    blocks = [[f"{label:<15}{text}".rstrip() for label, text in part] for part in parts if part]
    return "\n\n".join([title, *("\n".join(block) for block in blocks)])


def listed_under(label: str, texts: list[str]) -> Lines:
    """Lines of which only the first has the label."""
    return [("" if i else label, text) for i, text in enumerate(texts)]


def labelled_table(label: str, head: list[str], rows: dict[str, list[str] | str]) -> Lines:
    """A table with the rows' names as labels; a row that is one text is printed as it is."""
    cells = [row for row in rows.values() if not isinstance(row, str)]
    aligned = iter(align([head, *cells]))
    lines = [(label, next(aligned))]
    for name, row in rows.items():
        lines.append((f"  {name}", row if isinstance(row, str) else next(aligned)))
    return lines


def gpu_rule(recipe: Recipe) -> str:
    """What `gpu_rates` assumes."""
    precision = "float32" if recipe.precision.autocast is None else "16-bit"
    return f"GPUs at {MFU:.0%} of their {precision} peak, a lane in at least {LAUNCHES * 1e3:g} ms"


def core_rule(recipe: Recipe) -> str:
    """What `core_rate` assumes."""
    name = "DeiT's pipeline" if recipe.data.pipeline == "exact" else "data.pipeline fast"
    return f"cores and workers at {core_rate(recipe):.0f} images/s each: {name} on ImageNet"


# ---- the parts -----------------------------------------------------------------------------------


def _model(plan: Plan) -> Lines:
    recipe, cost = plan.recipe, plan.cost
    model, data = recipe.model, recipe.data
    size = f"{cost.parameters:,} parameters"
    if cost.trainable != cost.parameters:
        size += f", {cost.trainable:,} of them trained"
    tract = f"no TrAct, first layer {cost.first_layer}"
    if model.tract:
        tract = f"TrAct {model.tract:g} on {cost.first_layer}"
    flops = f"{cost.forward / 1e9:.4g} GFLOP forward, {cost.training / 1e9:.4g} GFLOP training"
    if model.train != "head":
        flops += " (3 x forward, less the first layer's input gradient)"
    lines = [
        ("model", f"{model.name}, {size}, {tract}, drop path {model.drop_path:g}"),
        ("per image", flops),
    ]
    if cost.tract:
        gram = f"TrAct's Gram matrix: {cost.tract / 1e9:.2g} GFLOP at most, not included above"
        lines.append(("", gram))
    counts = "unknown number of images"
    if plan.samples:
        counts = "{:,} training and {:,} validation images".format(*plan.samples)
    shape = " x ".join(map(str, image_shape(recipe)))
    return [*lines, ("data", f"{data.name}: {counts}, {data.classes} classes, {shape} px")]


def _run(plan: Plan) -> Lines:
    stream, steps, size = plan.stream, plan.steps, plan.recipe.batch.size
    if stream is None:
        return [("run", f"{steps or 'unknown number of'} steps of {size:,} images")]
    drawn = stream.steps_per_epoch * size
    epoch = f"{plural(stream.steps_per_epoch, 'step')} of {size:,} = {drawn:,} images"
    if stream.repeats > 1:
        different = min(stream.samples, math.ceil(drawn / stream.repeats))
        epoch += f", {stream.repeats} views each of {different:,}"
    total = plan.cost.training * steps * size
    run = f"{steps / stream.steps_per_epoch:g} epochs, {steps:,} steps, {steps * size:,} images"
    weights = "" if plan.recipe.ema.decay is None else " (weights and EMA)"
    written = format_bytes(plan.saves * plan.checkpoint)
    kept = f"{written} written, {format_bytes(plan.kept)} kept in {plan.folder}"
    return [
        ("epoch", epoch),
        ("run", f"{run}, {total:.3g} FLOP"),
        ("evaluations", f"{plan.evaluations:,}{weights}"),
        ("checkpoints", f"{plan.saves:,} of {format_bytes(plan.checkpoint)}: {kept}"),
    ]


def _rates(plan: Plan) -> Lines:
    rows = [[f"{epoch:,}", f"{step:,}", f"{rate:.5g}"] for epoch, step, rate in plan.rates]
    if not rows:
        return []
    return listed_under("learning rate", align([["epoch", "step", "lr"], *rows]))


def _batch(plan: Plan) -> Lines:
    batch = plan.recipe.batch
    parts = f"{plural(batch.lanes, 'lane')} of {batch.lane_size}"
    texts = [f"{batch.size:,} images in {parts}, summed before each step"]
    for processes, lanes in plan.shares.items():
        each = plural(lanes[0], "lane")
        if lanes[0] != lanes[-1]:
            each = f"{lanes[-1]} or {each}"
        in_turn = ", in turn" if lanes[0] > 1 else ""
        texts.append(f"{plural(processes, 'process', 'processes')}: {each} each{in_turn}")
    if batch.lanes < max(PROCESSES):
        texts.append(f"more than {batch.lanes} are refused")
    return listed_under("batch", texts)


def _memory(plan: Plan) -> Lines:
    rules = {
        "optimizer": f"{plan.recipe.optim.name}, float32",
        "activations": "saved by a forward pass of one lane, or of batch.lanes_per_forward",
        "TrAct": "patches copied at once, Gram matrix, its factor, a solution",
        "allowance": "1 GiB and 10 % for the CUDA context and temporary tensors (a guess)",
    }
    texts = [f"{format_bytes(sum(plan.memory.values()))} on each GPU, an estimate:"]
    for name, size in plan.memory.items():
        if size:
            texts.append(f"{name:<12}{format_bytes(size):>11}  {rules.get(name, '')}")
    return listed_under("memory", texts)


def _hours(plan: Plan) -> Lines:
    """One line per GPU type: hours on 1, 2, 4, 8 GPUs, images/s per GPU, cores to feed it."""
    recipe = plan.recipe
    core = core_rate(recipe)
    on_disk = DATASETS[recipe.data.name].on_disk and not recipe.data.resident

    def row(rate: float, eval_cost: float) -> list[str]:
        times = [hours(plan, rate, n, eval_cost) for n in plan.shares]
        cells = ["unknown" if time is None else f"{sum(time):.3g}" for time in times]
        cells.append(f"{rate:,.0f}")
        return [*cells, f"{math.ceil(rate / core):,}"] if on_disk else cells

    head = [*(plural(n, "GPU") for n in plan.shares), "images/s"]
    eval_cost = plan.cost.forward / plan.cost.training
    rows = {
        name: rate if isinstance(rate, str) else row(rate, eval_cost)
        for name, rate in gpu_rates(plan).items()
    }
    rules = [f"{gpu_rule(recipe)} (assumptions)"]
    if on_disk:
        head.append("cores")
        workers = recipe.data.workers
        rows[f"{workers} workers"] = row(core * max(workers, 1), 1.0)
        rules.append(f"{core_rule(recipe)} (an estimate)")
        rules.append("the slower of GPU and workers sets the pace; images/s and cores: for one GPU")
    return labelled_table("hours", head, rows) + listed_under("", rules)
