"""Compare runs: what they reached, means over seeds, what TrAct changes, and how they stand to published curves.

python tools/compare.py runs/quickstart runs/quickstart_baseline --plot curves.png

Runs of one recipe with different seeds are a group. Two groups that differ in model.tract alone are compared seed by
seed. Published curves are those of the recipes' expect.published, or that of --published KEY.
"""

import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.recipe import published
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.results.runs import (
    Group,
    Points,
    RunRecord,
    at,
    differing,
    epochs_saved,
    gains,
    gains_by_epoch,
    grouped,
    mean_curve,
    reached,
    read_runs,
    spread,
)

COLUMNS = ("run", "recipe", "tract", "seed", "steps", "SCORE", "best", "loss", "minutes", "exit")
GROUP_COLUMNS = ("group", "tract", "seeds", "n", "SCORE", "sd", "expected", "difference")
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # the colour-blind tell them apart too
DASHES = ("--", ":", "-.")


def row(run: RunRecord) -> dict[str, str]:
    """What a run is and what it reached."""
    losses, ended = run.curve("loss"), run.summary
    return {
        "run": run.name,
        "recipe": run.recipe.about,
        "tract": tract(run.recipe),
        "seed": str(run.recipe.seed),
        "steps": f"{max((record['step'] for record in run.metrics), default=0):,}",
        run.recipe.headline: f"{run.score[-1][1]:.2f}" if run.score else "-",
        "best": f"{max(value for _, value in run.score):.2f}" if run.score else "-",
        "loss": f"{losses[-1][1]:.4f}" if losses else "-",
        "minutes": f"{ended['seconds'] / 60:.1f}" if "seconds" in ended else "-",
        "exit": ended["exit"],
    }


def tract(recipe: Recipe) -> str:
    return "-" if recipe.model.tract is None else f"{recipe.model.tract:g}"


def table(rows: list[dict[str, str]], columns=COLUMNS) -> str:
    """Rows as a Markdown table; SCORE is the column of the runs' headline metric."""
    score = "map07" if "map07" in rows[0] else "top1"
    columns = [score if name == "SCORE" else name for name in columns]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    lines = [
        {name: name for name in columns},
        {name: "-" * widths[name] for name in columns},
        *rows,
    ]
    return "\n".join(
        "| " + " | ".join(line[name].ljust(widths[name]) for name in columns) + " |"
        for line in lines
    )


def group_row(group: Group) -> dict[str, str]:
    """Final score (percent) over the seeds that have finished, and what the recipe expects."""
    over, expected = spread(group.finals) if group.finals else None, group.recipe.expected
    return {
        "group": group.name,
        "tract": tract(group.recipe),
        "seeds": " ".join(map(str, group.by_seed)) or "-",
        "n": str(len(group.finals)),
        group.recipe.headline: f"{over.mean:.2f}" if over else "-",
        "sd": f"{over.sd:.2f}" if over and over.sd is not None else "-",
        "expected": "-" if expected is None else f"{expected:.2f}",
        "difference": f"{over.mean - expected:+z.2f}" if over and expected is not None else "-",
    }


def groups_text(groups: list[Group]) -> str:
    """The groups' table and the runs that it does not count; empty where it would say nothing new."""
    if not any(
        group.finals and (len(group.runs) > 1 or group.recipe.expected is not None)
        for group in groups
    ):
        return ""
    lines = [
        f"Final {groups[0].title} (%) of finished runs, mean and standard deviation over seeds:"
    ]
    lines += ["", table([group_row(group) for group in groups], GROUP_COLUMNS)]
    for group in groups:
        for run in (run for run in group.runs if run not in group.by_seed.values()):
            why = (
                f"its seed {run.recipe.seed} is there already"
                if run.finished
                else "it has not finished"
            )
            lines.append(f"not counted: {run.name}, {why}")
    return "\n".join(lines)


def pairs(groups: list[Group]) -> list[tuple[Group, Group]]:
    """The groups that differ in model.tract alone, two by two, the one without TrAct first."""
    alone = [
        pair
        for pair in combinations(groups, 2)
        if differing(*(group.recipe for group in pair)) == {"model.tract"}
    ]
    return [(one, other) if other.recipe.model.tract else (other, one) for one, other in alone]


def gain_text(base: Group, other: Group) -> str:
    """What `other` gains over `base`, paired by seed, and the epochs that the better of them saves."""
    by_seed = gains(base, other)
    title = " minus ".join(f"{group.name} (tract {tract(group.recipe)})" for group in (other, base))
    if not by_seed:
        return f"{title}: no seed that both have finished"
    over = spread(list(by_seed.values()))
    spread_text = "one seed: no spread"
    if over.sd is not None:
        spread_text = f"sd {over.sd:.2f}, 95 % t interval {over.low:+z.2f} to {over.high:+z.2f}, n = {len(by_seed)}"
    each = ", ".join(f"{gain:+z.2f} (seed {seed})" for seed, gain in by_seed.items())
    lines = [
        f"{title}, final {base.title} in points:",
        f"- paired difference {over.mean:+z.2f} ({spread_text}): {each}",
    ]
    saved = ", ".join(
        f"{'never' if value is None else f'{value:.1f}'}"
        for value in epochs_saved(base, other).values()
    )
    lines += [
        "- " + saved_text(base, other, list(by_seed)),
        f"- epochs saved, seed by seed: {saved}",
    ]
    return "\n".join(
        [
            *lines,
            "- the difference at each evaluation, paired by seed:",
            "",
            gain_table(base, other),
        ]
    )


def gain_table(base: Group, other: Group, most: int = 12) -> str:
    """Top-1 of two groups (mean and standard deviation) and their paired difference, at up to so many epochs."""
    by_epoch, rows = gains_by_epoch(base, other), []
    every = -(-len(by_epoch) // most)
    for epoch in list(by_epoch)[::-every][::-1]:  # the last is among them
        seeds, over = by_epoch[epoch], spread(list(by_epoch[epoch].values()))
        row = {"epoch": f"{epoch:g}", "difference": f"{over.mean:+z.2f}", "95 % interval": "-"}
        row["seed by seed"] = " ".join(f"{gain:+z.2f}" for gain in seeds.values())
        if over.sd is not None:
            row["95 % interval"] = f"{over.low:+z.2f} to {over.high:+z.2f}"
        for name, group in (("without", base), ("with", other)):
            top1 = spread([dict(group.by_seed[seed].score)[epoch] for seed in seeds])
            row[name] = f"{top1.mean:.2f}" + (f" ± {top1.sd:.2f}" if top1.sd is not None else "")
        rows.append(row)
    return table(rows, ("epoch", "without", "with", "difference", "95 % interval", "seed by seed"))


def saved_text(base: Group, other: Group, seeds: list[int]) -> str:
    """The epochs that the better of two groups saves to reach the other's final score, on mean curves over seeds."""
    curves = {
        group.name: mean_curve([group.by_seed[seed].score for seed in seeds])
        for group in (base, other)
    }
    (slow, behind), (fast, ahead) = sorted(curves.items(), key=lambda item: item[1][-1][1])
    final, target = behind[-1]
    epoch = reached(ahead, target)
    saved = f"{final - epoch:.1f} of {final:g} epochs saved ({100 * (final - epoch) / final:.0f} %)"
    return f"{fast} first reaches {target:.2f}, the final {base.title} of {slow}, at epoch {epoch:.1f}: {saved}"


def labels(curve: published.Published, last: float) -> list[float]:
    """The labels of a published curve to show, of those that runs have reached: 1-2-5 steps, eighths, the last."""
    there = [label for label in curve.epochs if label <= last + curve.tolerance]
    shown = {0, *(factor * 10**power for factor in (1, 2, 5) for power in range(4))}
    shown |= {curve.epochs[-1] * eighth / 8 for eighth in range(9)}
    return [label for label in there if len(there) <= 12 or label in shown or label == there[-1]]


def cell(group: Group, label: float, top1: float, tolerance: float) -> str:
    """`62.90 -0.22`: top-1 at a label, mean of the runs that have got there, and its difference to the published."""
    found = [value for run in group.runs if (value := at(run.score, label, tolerance)) is not None]
    if not found:
        return "-"
    value = fmean(value for value, _ in found)
    fewer = f"n={len(found)}" if len(found) < len(group.runs) else ""
    return " ".join(
        filter(
            None,
            (f"{value:.2f}", f"{value - top1:+z.2f}", *sorted({how for _, how in found}), fewer),
        )
    )


def published_text(entry: published.Published, groups: list[Group]) -> str:
    """What is published under a key, and the groups beside its curve at equal epochs."""
    lines = [f"Published as {entry.key}: {entry.about}"]
    for result in entry.results:
        numbers = ", ".join(
            f"{key} {value}" for key, value in result.items() if key not in ("what", "source")
        )
        lines.append(f"- {result['what']}: {numbers} ({result['source']})")
    if not entry.epochs:
        return "\n".join([*lines, "- no curve"])
    top1 = dict(zip(entry.epochs, entry.top1, strict=True))
    last = max(
        (epoch for group in groups for run in group.runs for epoch, _ in run.score),
        default=float("-inf"),
    )
    rows = [
        {"epoch": f"{label:g}", "published": f"{top1[label]:.2f}"}
        | {group.name: cell(group, label, top1[label], entry.tolerance) for group in groups}
        for label in labels(entry, last)
    ]
    lines.append(f"- curve: {entry.source}")
    if not rows:
        return "\n".join([*lines, "- no run has an evaluation yet"])
    how = f"~: interpolated between evaluations; @N: that of epoch N, labels may be {entry.tolerance:g} off"
    lines.append(f"- top-1 (%) and its difference to the published; {how}")
    return "\n".join(
        [*lines, "", table(rows, ("epoch", "published", *(group.name for group in groups)))]
    )


def plot(groups: list[Group], entries: dict[str, list[Group]], file: Path) -> None:
    """Top-1 over the published curves, the difference to them where there are any, and the training loss."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = [entry for entry in map(published.find, entries) if entry.epochs]
    titles = [
        f"{groups[0].title} (%)",
        *(["top-1 minus published (points)"] if curves else []),
        "training loss",
    ]
    figure, axes = pyplot.subplots(
        1, len(titles), figsize=(5.5 * len(titles), 4.6), layout="constrained"
    )
    for index, group in enumerate(groups):
        color = COLORS[index % len(COLORS)]
        draw(axes[0], group, [run.score for run in group.runs], color)
        draw(axes[-1], group, [run.curve("loss") for run in group.runs], color)
        for entry in (entry for entry in curves if group in entries[entry.key]):
            draw(axes[1], group, [difference(entry, run.score) for run in group.runs], color)
    last = max(
        (record["epoch"] for group in groups for run in group.runs for record in run.metrics),
        default=1,
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="epoch", ylabel=title, xlim=(0, 1.02 * last))
        axis.grid(alpha=0.3)
    for entry, dash in zip(curves, DASHES * len(curves), strict=False):
        label = f"published: {entry.key}"
        axes[0].plot(
            entry.epochs, entry.top1, color="black", linestyle=dash, linewidth=1.2, label=label
        )
        axes[1].axhline(0, color="black", linewidth=0.8)
    handles, names = axes[0].get_legend_handles_labels()
    columns = max(
        1, min(len(names), 150 // (6 + max(map(len, names))))
    )  # letters that a line has room for
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(
            file, f"cannot be written ({error})", "name a .png file in a folder that exists"
        ) from None


def draw(axis, group: Group, curves: list[Points], color: str) -> None:
    """The mean of a group's curves as a line, each of several as a thin one."""
    average = smooth(mean_curve(curves))
    label = group.name if len(curves) == 1 else f"{group.name}: mean of {len(curves)}"
    axis.plot(
        *zip(*average, strict=True),
        color=color,
        label=label,
        marker="." if len(average) < 40 else None,
    )
    for points in map(smooth, curves) if len(curves) > 1 else ():
        axis.plot(*zip(*points, strict=True), color=color, linewidth=0.7, alpha=0.4)


def difference(entry: published.Published, points: Points) -> Points:
    """A run's top-1 minus the published at each label, in points."""
    values = [
        (label, top1, at(points, label, entry.tolerance))
        for label, top1 in zip(entry.epochs, entry.top1, strict=True)
    ]
    return [(label, value[0] - top1) for label, top1, value in values if value is not None]


def smooth(points: Points, most: int = 1000) -> Points:
    """A long curve as at most so many means of neighbours; a short one as it is."""
    size = -(-len(points) // most)
    blocks = (points[start : start + size] for start in range(0, len(points), max(size, 1)))
    return [
        (fmean(epoch for epoch, _ in block), fmean(value for _, value in block)) for block in blocks
    ]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run's folder")
    parser.add_argument(
        "--published",
        metavar="KEY",
        help="key of deit_tract/recipe/published.yaml (default: the recipes')",
    )
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the curves")
    arguments = parser.parse_args()
    if arguments.published is not None:
        published.find(arguments.published, "--published")
    runs = read_runs(arguments.runs)
    if len({run.recipe.task for run in runs}) > 1:
        raise UserError("command line", "runs of different tasks", "compare runs of one task")
    groups = grouped(runs)
    entries: dict[str, list[Group]] = {}
    for group in groups:
        key = arguments.published or group.recipe.expect.published
        if key:
            entries.setdefault(published.find(key).key, []).append(group)
    parts = [
        table([row(run) for run in runs]),
        groups_text(groups),
        *(gain_text(*pair) for pair in pairs(groups)),
    ]
    print(
        "\n\n".join(
            filter(
                None,
                [*parts, *(published_text(published.find(key), entries[key]) for key in entries)],
            )
        )
    )
    if arguments.plot:
        plot(groups, entries, arguments.plot)


if __name__ == "__main__":
    script(main)
