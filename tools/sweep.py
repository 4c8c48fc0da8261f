"""A set of runs: what is finished, a queue that runs the rest, the paper's table beside ours.

python tools/sweep.py                                    the sets of tools/sweeps.yaml
python tools/sweep.py table1 --data-dir DIR              what is finished, and the hours left
python tools/sweep.py table1 --data-dir DIR --run --gpus 0-7 --per-gpu 2
python tools/sweep.py table1 --data-dir DIR --slurm --time 8:00:00 --print
python tools/sweep.py table1 --report --csv table1.csv --plot table1.png
python tools/sweep.py 'quickstart*' --vary model.tract=0.05,0.1 --seeds 0-2 --run

A set is an entry of tools/sweeps.yaml, or recipes given by pattern. Each run has a folder,
OUTPUT/RECIPE[,key=value]/seedS, and its state is read from there: the same command resumes after
any stop, skips what has finished, and several queues may work on one folder.
"""

import re
import shlex
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from deit_tract.cli import PREEMPTED, Parser, script
from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.common.text import nearest, plural, short
from deit_tract.recipe import catalogue
from deit_tract.recipe.datasets import DATASETS
from deit_tract.results.arguments import PICTURES, given, new_file, new_folder, path, whole
from deit_tract.results.sweep.definition import (
    FILE,
    Definition,
    Member,
    Sweep,
    describe,
    make_sweep,
    parse_seeds,
    read_definitions,
)
from deit_tract.results.sweep.queue import Queue, Slot, words
from deit_tract.results.sweep.state import State, read_state, status_text
from tools import submit

LIST = "sweep.list"  # a line for each run of the array


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    names = {"metavar": "SET|RECIPE", "nargs": "*", "type": given("SET")}
    add("sets", "a set, or recipes by name or pattern", **names)
    add("--file", "the file of sets", metavar="FILE", type=path("--file"), default=FILE)
    several = {"action": "append", "default": []}
    folders = "folder of the data set; NAME=DIR if there are several, repeatable"
    add("--data-dir", folders, metavar="[NAME=]DIR", type=given("--data-dir"), **several)
    output = "folder of all the runs (default: runs/sweeps/SET)"
    add("--output", output, metavar="DIR", type=new_folder("--output"))
    add("--vary", "a run for each value; repeatable", metavar="section.key=A,B", **several)
    add("--seeds", "as 0-4 or 0,1,2 (default: the set's)", metavar="SEEDS")
    gpu = "whose hours are left (default: this machine's, else A100 80GB); none: count no FLOPs"
    add("--hours", gpu, metavar="GPU")
    add("--run", "run what is unfinished on this machine", action="store_true")
    add("--gpus", "with --run: as 0-7 or 0,2 (default: all; else the CPU)", metavar="LIST")
    at_once = {"metavar": "N", "type": whole("--per-gpu", 1, 64), "default": 1}
    add("--per-gpu", "with --run: runs at a time per GPU, or on the CPU", **at_once)
    add("--retry", "with --run or --slurm: failed runs, too", action="store_true")
    add("--report", "the table of what has finished", action="store_true")
    add("--csv", "with --report: all its numbers", metavar="FILE", type=new_file("--csv"))
    add("--latex", "with --report: the table", metavar="FILE", type=new_file("--latex"))
    picture = new_file("--plot", *PICTURES)
    add("--plot", "with --report: a picture", metavar="FILE.png", type=picture)
    add("--slurm", "submit an array job over what is unfinished", action="store_true")
    limit = {"metavar": "N", "type": whole("--at-a-time", 1, 10_000), "default": 16}
    add("--at-a-time", "with --slurm: jobs of the array that run at once (16)", **limit)
    submit.add_cluster_options(arguments, gpus=1, default=1)
    return arguments


def main() -> None:
    arguments = parser().parse_args()
    if not arguments.sets:
        print(overview(arguments.file))
        return
    sweep = asked_sweep(arguments)
    if arguments.report:
        report(sweep, arguments)
    elif arguments.run:
        run(sweep, arguments)
    elif arguments.slurm or arguments.print:
        slurm(sweep, arguments)
    else:
        status(sweep, arguments)


def overview(file: Path) -> str:
    """One line per set."""
    definitions = read_definitions(file)
    width = max(map(len, definitions))
    return "\n".join(f"{name:{width}}  {one.about}" for name, one in definitions.items())


def asked_sweep(arguments: Namespace) -> Sweep:
    """The set that the command line names, with its --vary and --seeds."""
    definitions = read_definitions(arguments.file)
    first = arguments.sets[0]
    changes = {}
    if arguments.vary:
        changes["vary"] = dict(map(varied, arguments.vary))
    if arguments.seeds is not None:
        try:
            changes["seeds"] = parse_seeds(arguments.seeds)
        except ValueError as error:
            raise UserError("--seeds", str(error)) from None
    if first in definitions and len(arguments.sets) == 1:
        name = first
        definition = definitions[first].model_copy(update=changes)
    else:
        known = catalogue.names()
        if first not in known and re.fullmatch(r"[\w.+-]+", first):
            instead = nearest(first, [*definitions, *known]) or "without arguments: the sets"
            raise UserError("command line", f"no set or recipe '{short(first)}'", instead)
        name = re.sub(r"[^\w.+-]+", "_", "_".join(arguments.sets))[:80]
        columns = list(changes.get("vary", {})) or ""
        definition = Definition(recipes=arguments.sets, columns=columns, plot="columns")
        definition = definition.model_copy(update=changes)
    folder = arguments.output or Path("runs") / "sweeps" / name
    return make_sweep(name, definition, folder, dict(map(data_dir, arguments.data_dir)))


def data_dir(text: str) -> tuple[str, str]:
    """A data set's name, or "" for all others, and its folder."""
    name, equals, folder = text.partition("=")
    return (name, folder) if equals and name in DATASETS else ("", text)


def varied(text: str) -> tuple[str, list]:
    """A key and its values from `section.key=A,B`."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise UserError("--vary", f"'{short(text)}' names no values", "write section.key=A,B")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        raise UserError("--vary", f"'{short(values)}' is not a list of values") from None
    return key.strip(), [_plain(value) for value in parsed]


def _plain(value: object) -> object:
    """A number that YAML 1.1 takes for text, such as 1e-3, as a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def status(sweep: Sweep, arguments: Namespace) -> None:
    print(describe(sweep))
    states = {member.folder: read_state(member) for member in sweep.members}
    print(status_text(sweep, states, *hours_left(sweep, states, arguments.hours)))


def hours_left(
    sweep: Sweep, states: dict[Path, State], asked: str | None
) -> tuple[dict[Path, float], str]:
    """Hours of each unfinished run from its newest checkpoint, and of which GPU."""
    from deit_tract.plan.gpus import GPUS, this_gpu
    from deit_tract.plan.hours import estimate_hours

    gpu = asked or this_gpu()
    if gpu == "none":
        return {}, ""
    if gpu not in GPUS:
        raise UserError("--hours", f"no GPU '{short(gpu)}' is known", f"{', '.join(GPUS)} or none")
    unfinished = [one for one in sweep.members if states[one.folder].kind != "finished"]
    found = estimate_hours([member.recipe for member in unfinished], gpu)
    hours = {}
    for member, estimate in zip(unfinished, found, strict=True):
        if estimate is not None:
            done = min(states[member.folder].step / estimate.steps, 1)
            hours[member.folder] = estimate.hours * (1 - done)
    return hours, gpu


def run(sweep: Sweep, arguments: Namespace) -> None:
    """Run what is unfinished; exit code 0 only if all have finished."""
    print(describe(sweep), flush=True)
    states = {member.folder: read_state(member) for member in sweep.members}
    hours, _ = hours_left(sweep, states, arguments.hours)
    slots = asked_slots(arguments)
    stopped = Queue(sweep.members, slots, hours, arguments.retry).run()
    states = {member.folder: read_state(member) for member in sweep.members}
    print(status_text(sweep, states))
    if stopped:
        print("the same command resumes")
        sys.exit(PREEMPTED)
    if any(state.kind != "finished" for state in states.values()):
        sys.exit(1)


def asked_slots(arguments: Namespace) -> list[Slot]:
    """The slots of --gpus and --per-gpu; on the CPU if there is no GPU."""
    import torch

    count = torch.cuda.device_count()
    gpus: list[str | None] = [str(number) for number in range(count)] or [None]
    if arguments.gpus is not None:
        try:
            gpus = [str(number) for number in parse_seeds(arguments.gpus)]
        except ValueError:
            what = f"'{short(arguments.gpus)}' is not a list of GPUs"
            raise UserError("--gpus", what, "write it as 0-7 or 0,2") from None
        if any(int(gpu) >= count for gpu in gpus):
            raise UserError("--gpus", f"this machine has {plural(count, 'GPU')}")
    return [Slot(gpu) for _ in range(arguments.per_gpu) for gpu in gpus]


def report(sweep: Sweep, arguments: Namespace) -> None:
    from deit_tract.results.sweep.plot import plot
    from deit_tract.results.sweep.report import latex, make_report, report_text, write_csv

    headline = sweep.members[0].recipe.headline
    metrics = sweep.definition.metrics or [headline]
    reports = [make_report(sweep, metric) for metric in metrics]
    print(describe(sweep), report_text(reports), sep="\n\n")
    if arguments.csv:
        with disk_errors(arguments.csv, "name another file"):
            write_csv(reports, arguments.csv)
    if arguments.latex:
        with disk_errors(arguments.latex, "name another file"):
            arguments.latex.write_text(latex(reports), encoding="utf-8")
    if arguments.plot:
        plot(sweep, reports[0], arguments.plot)


MOST_JOBS = 1000  # of an array: SLURM's MaxArraySize is 1001 unless a cluster changes it


def slurm(sweep: Sweep, arguments: Namespace) -> None:
    """Submit array jobs over what is unfinished, or show their scripts."""
    members = startable(sweep, arguments.retry)
    for recipe in {member.given: member.recipe for member in members}.values():
        submit.check_job(arguments, recipe)
    lines = [run_line(member) for member in members]
    workers = max(member.recipe.data.workers for member in members)
    cpus = arguments.cpus_per_task or arguments.gpus_per_node * (workers + 1)
    texts = []
    for first in range(0, len(members), MOST_JOBS):
        last = min(first + MOST_JOBS, len(members)) - first - 1
        arguments.array = f"0-{last}%{arguments.at_a_time}"
        what = list_lines(sweep.folder / LIST, first)
        texts.append(submit.script_text(arguments, sweep.name, sweep.folder, cpus, what))
    if arguments.print:
        print("\n".join(texts), end="")
        return
    with disk_errors(sweep.folder, "choose another --output"):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        (sweep.folder / LIST).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, text in enumerate(texts):
        submit.submit(text, sweep.folder, f"job{number}.sbatch")


def startable(sweep: Sweep, retry: bool) -> list[Member]:
    """The runs that a job can start now; what is left out is said."""
    kinds = ("waiting", "saved", "failed") if retry else ("waiting", "saved")
    states = {member.folder: read_state(member).kind for member in sweep.members}
    members = [member for member in sweep.members if states[member.folder] in kinds]
    blocked = list(states.values()).count("blocked")
    if not members:
        raise UserError(sweep.name, "nothing to start", "see its state without --slurm")
    if blocked:
        what = f"{plural(blocked, 'run')} wait for weights of this set; submit again for them"
        print(what, file=sys.stderr)
    return members


def run_line(member: Member) -> str:
    """A run as a line of the list: its folder, then its script and arguments."""
    return shlex.join([str(member.folder), *words(member), "--output", str(member.folder)])


def list_lines(file: Path, first: int) -> list[str]:
    """The script's lines that take a job's run from the list, where line 1 is run 0."""
    return [
        f'line=$(sed -n "$((SLURM_ARRAY_TASK_ID + {first + 1}))p" {shlex.quote(str(file))})',
        'eval "words=($line)"  # written and quoted by tools/sweep.py',
        "output=${words[0]}",
        'run=("${words[@]:1}")',
    ]


if __name__ == "__main__":
    script(main)
