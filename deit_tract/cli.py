"""The scripts' arguments, and how a mistake reaches the person: one line on stderr, exit code 2.

Torch and timm take seconds to import, so only training and planning do: --list and mistakes answer
at once.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deit_tract.common.errors import UserError
from deit_tract.common.text import nearest, short
from deit_tract.recipe import aliases, listing, reference
from deit_tract.recipe.describe import explain, schema
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.source import ROOT
from deit_tract.results.arguments import add_shared, given, path

# exit code after a signal: saved, to be started again (EX_TEMPFAIL of sysexits.h)
PREEMPTED = 75


class Parser(argparse.ArgumentParser):
    """argparse with its errors as one line, and descriptions printed as they are written."""

    def __init__(self, **options):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=as_written, allow_abbrev=False, **options)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse's, but says what to write for flags of other trainers and for typos."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [*self._option_string_actions]
            instead = aliases.instead_of(rest, options) or nearest(rest[0], options)
            self.error(f"unrecognized arguments: {' '.join(rest)}", instead)
        return found

    def error(self, message: str, instead: str = ""):
        raise UserError("command line", message, instead or "see --help")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse; text that could be neither printed nor kept in a file is refused."""
        for text in sys.argv[1:] if args is None else args:
            if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
                what = f"'{short(text)}' is not UTF-8 text"
                raise UserError("command line", what, "rename what it names")
        return super().parse_known_args(args, namespace)


def _parser(description: str, finetune: bool) -> Parser:
    """Return the arguments of train.py, and of finetune.py with its --checkpoint."""
    arguments = Parser(description=description)
    add = arguments.add_argument
    add(
        "--recipe",
        metavar="NAME|FILE",
        type=given("--recipe"),
        help="a recipe below recipes/ by name, or a YAML file",
    )
    if finetune:
        kinds = "RUN|FILE|timm:NAME|torchvision:NAME"
        add("--checkpoint", metavar=kinds, type=given("--checkpoint"), help="weights to start from")
        best = "of a RUN the best weights on its validation images (save.best), not the newest"
        add("--best", action="store_true", help=best)
    add_shared(arguments, "--data-dir")
    output = "the run's folder (default: runs/RECIPE); an existing run is resumed"
    add("--output", metavar="DIR", type=path("--output"), help=output)
    override = "override a value; may be repeated"
    add("--set", metavar="section.key=value", action="append", default=[], help=override)
    listed = "families and recipes; with WORD the recipes of a name, data set, model or 'tract'"
    add("--list", metavar="WORD", nargs="?", const="", help=listed)
    plan = "what the run will do and need, and what would stop it; needs no data"
    add("--plan", action="store_true", help=plan)
    add("--gpus", metavar="N", type=int, help="with --plan: what N GPUs change, 8 per node")
    add("--explain", action="store_true", help="every value of the recipe and where it comes from")
    add("--schema", action="store_true", help="the JSON schema of a recipe, for editors")
    describe = "with --explain: what each key means and may be; with --schema: the same as Markdown"
    add("--describe", action="store_true", help=describe)
    return arguments


def main(description: str, finetune: bool = False) -> None:
    """Run train.py or finetune.py."""
    script(lambda: _run(_parser(description, finetune).parse_args()))


def script(function: Callable[[], None], words: Mapping[str, str] = {}) -> None:
    """Run a script's function; a mistake of its user becomes a line and exit code 2.

    words: the script's own for options of train.py that a hint may name.
    """
    try:
        function()
    except UserError as error:
        sys.exit(_report(error.hinting(words)))
    except RuntimeError as error:
        # torch reports a dead loader process wherever the main thread is, more than once
        from deit_tract.data.loader import worker_died

        died = worker_died(error)
        if died is None:
            raise
        sys.exit(_report(died))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command resumes from the last checkpoint, if there is one")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.describe and not (arguments.explain or arguments.schema):
        instead = "add --explain, or --schema for all settings"
        raise UserError("command line", "--describe goes with --explain or --schema", instead)
    if arguments.list is not None:
        print(listing.matching(arguments.list) if arguments.list else listing.overview())
        return
    if arguments.schema:
        print(reference.page() if arguments.describe else json.dumps(schema(), indent=1))
        return
    if arguments.gpus is not None and not arguments.plan:
        instead = "the launcher sets how many processes train"
        raise UserError("command line", "--gpus goes with --plan", instead)
    if arguments.recipe is None:
        instead = "give --recipe NAME; --list shows them"
        raise UserError("command line", "--recipe is missing", instead)
    recipe = load_recipe(arguments.recipe, arguments.set, arguments.data_dir)
    folder = arguments.output or Path("runs") / recipe.name
    if arguments.explain:
        print(explain(recipe, reference.meanings() if arguments.describe else {}), end="")
    elif arguments.plan:
        own = load_recipe(arguments.recipe)
        weights = getattr(arguments, "checkpoint", None)
        _plan(recipe, own, folder, arguments.gpus, weights)
    else:
        _train(recipe, folder, arguments)


def _plan(recipe: Recipe, own: Recipe, folder: Path, gpus: int | None, weights: str | None) -> None:
    """Print the plan; own: the recipe without --set."""
    from deit_tract.plan import scaling
    from deit_tract.plan.plan import make_plan
    from deit_tract.plan.remarks import other_batch
    from deit_tract.plan.text import show_plan
    from deit_tract.train.fill_in import fill_in

    plan = make_plan(fill_in(recipe, folder, weights, need_data=False), folder, gpus)
    plan.notes.extend(other_batch(recipe, own))
    print(show_plan(plan) if gpus is None else scaling.show_scaled(plan, gpus))


def _train(recipe: Recipe, folder: Path, arguments: argparse.Namespace) -> None:
    finetune = hasattr(arguments, "checkpoint")
    start = (arguments.checkpoint, arguments.best) if finetune else (None, False)
    if recipe.model.pretrained and not finetune:
        what = f"{recipe.name} starts from given weights"
        raise UserError("recipe", what, "use finetune.py --checkpoint ...")
    if finetune and arguments.checkpoint is None:
        instead = "give the weights to fine-tune; else use train.py"
        raise UserError("command line", "--checkpoint is missing", instead)
    from deit_tract.train import loop, screen

    summary = loop.train(recipe, folder, *start)
    first = int(os.environ.get("RANK", 0)) == 0
    if summary["exit"] == "preempted":
        if first:
            saved = f"preempted: saved step {summary['steps']:,} in {folder}"
            screen.write(f"{saved}; the same command resumes from it")
        sys.exit(PREEMPTED)
    if first:
        screen.write(_ending(summary, recipe.headline))
        for line in _next_commands(folder, recipe):
            print(line)


def _ending(summary: dict, headline: str) -> str:
    """Return the last evaluation, which is the result, and the best, chosen on its own images."""

    def metrics(values: dict) -> str:
        names = [name for name in values if name in (headline, f"ema_{headline}")]
        return ", ".join(f"{name} {values[name]:.2f}" for name in names)

    length = f"{summary['steps']:,} steps in {summary['seconds']:.0f} s"
    if summary["final"] is None:
        return f"finished after {length}; metrics.jsonl has no evaluation"
    best = ""
    if summary["best"] not in (None, summary["final"]):
        best = f" (best {metrics(summary['best'])} at step {summary['best']['step']:,})"
    return f"finished: {metrics(summary['final'])}{best} after {length}"


def _next_commands(folder: Path, recipe: Recipe) -> Iterator[str]:
    """Lines with the commands for a finished run, as they can be pasted where it was started."""
    tools = Path("tools") if Path.cwd() == ROOT else ROOT / "tools"
    run = shlex.quote(str(folder))
    name = shlex.quote(str(Path("exported") / folder.resolve().name))
    yield f"in {folder}; next:"
    yield f"  python {shlex.quote(str(tools / 'evaluate.py'))} {run}"
    if recipe.task == "classify":  # timm has no detectors
        yield f"  python {shlex.quote(str(tools / 'export.py'))} {run} {name}"
    yield f"  python {shlex.quote(str(tools / 'compare.py'))} {run}"


def _report(error: UserError) -> int:
    """Print the error's lines and return the exit code.

    Before the process group exists every process finds the same mistake; only rank 0 reports it.
    """
    rank = int(os.environ.get("RANK", 0))
    torch = sys.modules.get("torch")
    if rank and not (torch and torch.distributed.is_initialized()):
        time.sleep(5)  # the first to end makes the launcher end the others
        return 2
    prefix = "error" if rank == 0 else f"error: process {rank}"
    for line in str(error).splitlines():
        print(f"{prefix}: {line}", file=sys.stderr)
    return 2
