"""Compare runs: what they reached, means over seeds, what TrAct changes, and published curves.

python tools/compare.py runs/quickstart runs/quickstart_baseline --plot curves.png
python tools/compare.py runs/* --plot curves.png --panels lr,val_loss
python tools/compare.py --bitwise runs/before runs/after

Runs of one recipe with different seeds are a group. Two groups that differ only in model.tract are
compared seed by seed. Published curves are those of the recipes' expect.published, or that of
--published KEY. A run whose --set changed the experiment is not held against its recipe's `expect`.

--bitwise says whether two runs have the same logged numbers, weights and averaged weights to the
last bit, with the first difference; the exit code is then 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.recipe import published
from deit_tract.results.arguments import PICTURES, new_file, path
from deit_tract.results.bitwise import compare_bitwise
from deit_tract.results.compare import comparison
from deit_tract.results.plot import check_panels, plot
from deit_tract.results.runs import Group, grouped, read_runs
from deit_tract.train.weights_source import recipe_of_run


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    add("runs", "a run's folder", metavar="RUN", nargs="+", type=path("RUN"))
    key = "key of deit_tract/recipe/published.yaml (default: the recipes')"
    add("--published", key, metavar="KEY")
    picture = new_file("--plot", *PICTURES)
    add("--plot", "draw the curves", metavar="FILE.png", type=picture)
    panels = "with --plot: further numbers of metrics.jsonl, each a panel"
    add("--panels", panels, metavar="KEY,...", type=lambda keys: keys.split(","), default=[])
    add("--bitwise", "compare two runs bit by bit", action="store_true")
    return arguments


def main() -> None:
    arguments = parser().parse_args()
    if arguments.panels and not arguments.plot:
        raise UserError("command line", "--panels goes with --plot", "give --plot FILE.png")
    if arguments.bitwise:
        sys.exit(bitwise(arguments.runs))
    if arguments.published is not None:
        published.find(arguments.published, "--published")
    runs = read_runs(arguments.runs)
    if len({run.recipe.task for run in runs}) > 1:
        raise UserError("command line", "runs of different tasks", "compare runs of one task")
    groups = grouped(runs)
    entries: dict[str, list[Group]] = {}
    for group in groups:
        own = None if group.runs[0].changed else group.recipe.expect.published
        key = arguments.published or own
        if key:
            entries.setdefault(published.find(key).key, []).append(group)
    curves = [run.metrics for run in runs] + [published.find(key).epochs for key in entries]
    if arguments.plot and not any(curves):
        raise UserError("--plot", "no run has metrics yet", "leave out --plot")
    check_panels(arguments.panels, runs)
    print(comparison(runs, groups, entries))
    if arguments.plot:
        plot(groups, entries, arguments.plot, arguments.panels)


def bitwise(runs: list[Path]) -> int:
    """Print how two runs compare bit by bit; returns 1 if they differ."""
    if len(runs) != 2:
        raise UserError("--bitwise", f"{len(runs)} runs", "give two")
    for run in runs:
        recipe_of_run(run)
    verdicts = compare_bitwise(*runs)
    print("\n".join(verdict.line for verdict in verdicts))
    return 0 if all(verdict.equal for verdict in verdicts) else 1


if __name__ == "__main__":
    script(main)
