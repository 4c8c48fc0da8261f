"""Compare runs: what they reached, means over seeds, what TrAct changes, and published curves.

python tools/compare.py runs/quickstart runs/quickstart_baseline --plot curves.png

Runs of one recipe with different seeds are a group. Two groups that differ only in model.tract are
compared seed by seed. Published curves are those of the recipes' expect.published, or that of
--published KEY.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.recipe import published
from deit_tract.results.arguments import PICTURES, new_file, path
from deit_tract.results.compare import comparison
from deit_tract.results.plot import plot
from deit_tract.results.runs import Group, grouped, read_runs


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    add("runs", "a run's folder", metavar="RUN", nargs="+", type=path("RUN"))
    key = "key of deit_tract/recipe/published.yaml (default: the recipes')"
    add("--published", key, metavar="KEY")
    picture = new_file("--plot", *PICTURES)
    add("--plot", "draw the curves", metavar="FILE.png", type=picture)
    return arguments


def main() -> None:
    arguments = parser().parse_args()
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
    curves = [run.metrics for run in runs] + [published.find(key).epochs for key in entries]
    if arguments.plot and not any(curves):
        raise UserError("--plot", "no run has metrics yet", "leave out --plot")
    print(comparison(runs, groups, entries))
    if arguments.plot:
        plot(groups, entries, arguments.plot)


if __name__ == "__main__":
    script(main)
