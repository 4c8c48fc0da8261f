"""Runs as text: what they reached, means over seeds, what TrAct gains, published curves."""

from itertools import combinations
from statistics import fmean

from deit_tract.common import text
from deit_tract.recipe import published
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.results.experiments import differing_values
from deit_tract.results.runs import (
    Group,
    RunRecord,
    at,
    differing,
    epochs_saved,
    gains,
    gains_by_epoch,
    mean_curve,
    reached,
)
from deit_tract.results.statistics import better, interval, spread

GAIN_COLUMNS = ("epoch", "without", "with", "difference", "95 % interval", "seed by seed")
MOST_EPOCHS = 12  # rows of a table of gains
MOST_COLUMNS = 6  # differing keys beside the runs; more are a table of their own
MOST_EXIT = 40  # characters of how a run has ended
TEXTS = ("what", "source", "finetuned")  # of a published result, besides its numbers


def comparison(runs: list[RunRecord], groups: list[Group], entries: dict[str, list[Group]]) -> str:
    """Return everything there is to compare.

    entries: the groups that are compared with each published key.
    """
    parts = [runs_text(runs), groups_text(groups)]
    parts += [gain_text(*pair) for pair in pairs(groups)]
    parts += [published_text(published.find(key), entries[key]) for key in entries]
    return "\n\n".join(part for part in parts if part)


def table(rows: list[dict[str, str]]) -> str:
    columns = list(rows[0])
    return text.table(columns, [[row[name] for name in columns] for row in rows])


def lambda_text(recipe: Recipe) -> str:
    return "-" if recipe.model.tract is None else f"{recipe.model.tract:g}"


# ---- runs and groups -----------------------------------------------------------------------------


def runs_text(runs: list[RunRecord]) -> str:
    """Return the table of runs, with a column for each key that differs between them.

    If these are many, each is a row of a second table.
    """
    differing = differing_values([run.recipe for run in runs])
    beside = differing if len(differing) <= MOST_COLUMNS else {}
    rows = []
    for place, run in enumerate(runs):
        values = {key: texts[place] for key, texts in beside.items()}
        rows.append(run_row(run, values))
    if len(beside) == len(differing):
        return table(rows)
    columns = ["key", *(run.name for run in runs)]
    keys = text.table(columns, [[key, *texts] for key, texts in differing.items()])
    return f"{table(rows)}\n\nThe keys that differ:\n\n{keys}"


def run_row(run: RunRecord, differing: dict[str, str]) -> dict[str, str]:
    """Return what a run is, its values of the keys that differ, and what it reached."""
    losses = run.curve("loss")
    seconds = run.summary.seconds
    return {
        "run": run.name,
        "recipe": run.recipe.about,
        "tract": lambda_text(run.recipe),
        "seed": str(run.recipe.seed),
        **differing,
        "steps": f"{max((record['step'] for record in run.metrics), default=0):,}",
        run.recipe.headline: f"{run.score[-1][1]:.2f}" if run.score else "-",
        "best": f"{max(value for _, value in run.score):.2f}" if run.score else "-",
        "loss": f"{losses[-1][1]:.4f}" if losses else "-",
        "minutes": "-" if seconds is None else f"{seconds / 60:.1f}",
        "exit": text.short(text.on_one_line(run.summary.exit), MOST_EXIT),
    }


def group_row(group: Group) -> dict[str, str]:
    """Return the final score (percent) over finished seeds, and what the recipe expects."""
    over = spread(group.finals) if group.finals else None
    expected = group.expected
    known = over is not None and expected is not None
    return {
        "group": group.name,
        "tract": lambda_text(group.recipe),
        "seeds": " ".join(map(str, group.by_seed)) or "-",
        "n": str(len(group.finals)),
        group.recipe.headline: f"{over.mean:.2f}" if over else "-",
        "sd": f"{over.sd:.2f}" if over and over.sd is not None else "-",
        "expected": "-" if expected is None else f"{expected:.2f}",
        "difference": f"{over.mean - expected:+z.2f}" if known else "-",
    }


def groups_text(groups: list[Group]) -> str:
    """Return the groups' table and the runs it does not count; empty if it has nothing new."""
    finished = [group for group in groups if group.finals]
    if not any(len(group.runs) > 1 or group.expected is not None for group in finished):
        return ""
    score = f"Final {groups[0].title} (%)"
    lines = [f"{score} of finished runs, mean and standard deviation over seeds:", ""]
    lines.append(table([group_row(group) for group in groups]))
    for group in groups:
        counted = group.by_seed.values()
        for run in group.runs:
            if run not in counted:
                twice = f"its seed {run.recipe.seed} is there already"
                why = twice if run.finished else "it has not finished"
                lines.append(f"not counted: {run.name}, {why}")
        changed = group.runs[0].changed
        if changed and group.recipe.expected is not None:
            keys = text.listed(changed, 3)
            lines.append(f"nothing expected: {group.name}, its recipe is changed ({keys})")
    return "\n".join(lines)


# ---- what TrAct changes --------------------------------------------------------------------------


def pairs(groups: list[Group]) -> list[tuple[Group, Group]]:
    """Return the pairs of groups that differ only in model.tract, the one without TrAct first."""
    found = []
    for one, other in combinations(groups, 2):
        if differing(one.recipe, other.recipe) == {"model.tract"}:
            found.append((one, other) if other.recipe.model.tract else (other, one))
    return found


def gain_text(base: Group, other: Group) -> str:
    """Return what `other` gains over `base`, paired by seed, and the epochs that are saved."""
    by_seed = gains(base, other)
    title = " minus ".join(
        f"{group.name} (tract {lambda_text(group.recipe)})" for group in (other, base)
    )
    if not by_seed:
        return f"{title}: no seed that both have finished"
    over = spread(list(by_seed.values()))
    sd = "" if over.sd is None else f"sd {over.sd:.2f}, "
    certainty = f"{sd}{interval(over, 'seed')}, {better(by_seed.values())}"
    each = ", ".join(f"{gain:+z.2f} (seed {seed})" for seed, gain in by_seed.items())
    saved = epochs_saved(base, other).values()
    saved_each = ", ".join("never" if epochs is None else f"{epochs:.1f}" for epochs in saved)
    return "\n".join(
        [
            f"{title}, final {base.title} in points:",
            f"- paired difference {over.mean:+z.2f} ({certainty}): {each}",
            "- " + saved_text(base, other, list(by_seed)),
            f"- epochs saved, seed by seed: {saved_each}",
            "- the difference at each evaluation, paired by seed:",
            "",
            gain_table(base, other),
        ]
    )


def gain_table(base: Group, other: Group) -> str:
    """Return the score of two groups and their paired difference, at no more than MOST_EPOCHS."""
    by_epoch = gains_by_epoch(base, other)
    every = -(-len(by_epoch) // MOST_EPOCHS)
    shown = list(by_epoch)[::-every][::-1]  # the last one is always shown
    rows = [gain_row(base, other, epoch, by_epoch[epoch]) for epoch in shown]
    return text.table(GAIN_COLUMNS, rows)


def gain_row(base: Group, other: Group, epoch: float, by_seed: dict[int, float]) -> list[str]:
    means = []
    for group in (base, other):
        score = spread([dict(group.by_seed[seed].score)[epoch] for seed in by_seed])
        sd = "" if score.sd is None else f" ± {score.sd:.2f}"
        means.append(f"{score.mean:.2f}{sd}")
    over = spread(list(by_seed.values()))
    span = "-" if over.sd is None else f"{over.low:+z.2f} to {over.high:+z.2f}"
    each = " ".join(f"{gain:+z.2f}" for gain in by_seed.values())
    return [f"{epoch:g}", *means, f"{over.mean:+z.2f}", span, each]


def saved_text(base: Group, other: Group, seeds: list[int]) -> str:
    """Return the epochs that the better of two groups saves to reach the other's final score.

    On mean curves over seeds.
    """
    curves = {
        group.name: mean_curve([group.by_seed[seed].score for seed in seeds])
        for group in (base, other)
    }
    (slow, behind), (fast, ahead) = sorted(curves.items(), key=lambda item: item[1][-1][1])
    final, target = behind[-1]
    epoch = reached(ahead, target)
    saved = f"{final - epoch:.1f} of {final:g} epochs saved ({100 * (final - epoch) / final:.0f} %)"
    goal = f"{target:.2f}, the final {base.title} of {slow}"
    return f"{fast} first reaches {goal}, at epoch {epoch:.1f}: {saved}"


# ---- published curves ----------------------------------------------------------------------------


def published_text(entry: published.Published, groups: list[Group]) -> str:
    """Return what is published under a key, and the groups beside its curve at equal epochs."""
    lines = [f"Published as {entry.key}: {entry.about}"]
    for result in entry.results:
        numbers = [f"{key} {result[key]}" for key in result if key not in TEXTS]
        lines.append(f"- {result['what']}: {', '.join(numbers)} ({result['source']})")
    if not entry.epochs:
        return "\n".join([*lines, "- no curve"])
    lines.append(f"- curve: {entry.source}")
    reached_epochs = [epoch for group in groups for run in group.runs for epoch, _ in run.score]
    shown = labels(entry, max(reached_epochs, default=float("-inf")))
    if not shown:
        return "\n".join([*lines, "- no run has an evaluation yet"])
    sources = (
        "~: interpolated between evaluations; "
        f"@N: that of epoch N, labels may be {entry.tolerance:g} off"
    )
    lines += [f"- top-1 (%) and its difference to the published; {sources}", ""]
    rows = []
    for label, top1 in zip(entry.epochs, entry.top1, strict=True):
        if label in shown:
            cells = [cell(group, label, top1, entry.tolerance) for group in groups]
            rows.append([f"{label:g}", f"{top1:.2f}", *cells])
    columns = ["epoch", "published", *(group.name for group in groups)]
    return "\n".join([*lines, text.table(columns, rows)])


def labels(curve: published.Published, last: float) -> list[float]:
    """Return the labels of a published curve to show, of those that runs have reached.

    All if they are few, else 1-2-5 steps, eighths of the curve, and the last one.
    """
    there = [label for label in curve.epochs if label <= last + curve.tolerance]
    if len(there) <= 12:
        return there
    shown = {0, there[-1], *(factor * 10**power for factor in (1, 2, 5) for power in range(4))}
    shown |= {curve.epochs[-1] * eighth / 8 for eighth in range(9)}
    return [label for label in there if label in shown]


def cell(group: Group, label: float, top1: float, tolerance: float) -> str:
    """Return the mean top-1 at a label, and its difference to the published: `62.90 -0.22`."""
    values = [at(run.score, label, tolerance) for run in group.runs]
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    mean = fmean(value for value, _ in found)
    parts = [f"{mean:.2f}", f"{mean - top1:+z.2f}", *sorted({how for _, how in found})]
    if len(found) < len(group.runs):
        parts.append(f"n={len(found)}")
    return " ".join(part for part in parts if part)
