"""The scripts' arguments, and how a mistake reaches the person: one line on stderr, exit code 2."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deit_tract.common.errors import UserError
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe import source
from deit_tract.recipe.describe import explain, schema
from deit_tract.recipe.resolve import Recipe, load_recipe

PREEMPTED = (
    75  # exit code after a signal: saved and to be started again (EX_TEMPFAIL of sysexits.h)
)


class Parser(argparse.ArgumentParser):
    """argparse with its errors as one line, descriptions kept as they are written."""

    def __init__(self, **options):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str):
        raise UserError("command line", message, "see --help")


def _parser(description: str, finetune: bool) -> Parser:
    """The arguments of train.py, and of finetune.py with its --checkpoint."""
    arguments = Parser(description=description)
    add = arguments.add_argument
    add("--recipe", metavar="NAME|FILE", help="a recipe of recipes/ by name, or a YAML file")
    if finetune:
        add(
            "--checkpoint",
            metavar="RUN|FILE|timm:NAME|torchvision:NAME",
            help="weights to start from",
        )
    add("--data-dir", metavar="DIR", help="where the data set lies")
    add(
        "--output",
        metavar="DIR",
        type=Path,
        help="the run's folder (default: runs/RECIPE); an existing run goes on",
    )
    add(
        "--set",
        metavar="section.key=value",
        action="append",
        default=[],
        help="override a value; may be repeated",
    )
    add("--list", action="store_true", help="every recipe: what it is, expected top-1, cost")
    add(
        "--plan",
        action="store_true",
        help="what the run will do and need, and what would stop it; needs no data",
    )
    add("--gpus", metavar="N", type=int, help="with --plan: what N GPUs change, 8 a node")
    add("--explain", action="store_true", help="every value of the recipe and where it comes from")
    add("--schema", action="store_true", help="the JSON schema of a recipe, for editors")
    return arguments


def main(description: str, finetune: bool = False) -> None:
    """train.py and finetune.py."""
    script(lambda: _run(_parser(description, finetune).parse_args()))


def script(function: Callable[[], None]) -> None:
    """Run a script's function; a mistake of its user becomes a line and exit code 2."""
    try:
        function()
    except UserError as error:
        sys.exit(_report(error))
    except (
        RuntimeError
    ) as error:  # torch tells of a dead loader process wherever the main thread is, more than once
        from deit_tract.data.loader import worker_died

        died = worker_died(error)
        if died is None:
            raise
        sys.exit(_report(died))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.list:
        print(listing())
    elif arguments.schema:
        print(json.dumps(schema(), indent=1))
    elif arguments.gpus is not None and not arguments.plan:
        raise UserError(
            "command line", "--gpus goes with --plan", "the launcher sets how many processes train"
        )
    elif arguments.recipe is None:
        raise UserError(
            "command line", "--recipe is missing", "give --recipe NAME; --list shows them"
        )
    else:
        recipe = load_recipe(arguments.recipe, arguments.set, arguments.data_dir)
        if arguments.explain:
            print(explain(recipe), end="")
        elif arguments.plan:
            _plan(recipe, _folder(recipe, arguments), arguments.gpus)
        else:
            _train(recipe, arguments)


def _folder(recipe: Recipe, arguments: argparse.Namespace) -> Path:
    return arguments.output or Path("runs") / recipe.name


def _plan(recipe: Recipe, folder: Path, gpus: int | None) -> None:
    from deit_tract.plan import scaling  # as in _train

    made = make_plan(recipe, folder)
    print(show_plan(made) if gpus is None else scaling.show_scaled(scaling.scale_plan(made, gpus)))


def _train(recipe: Recipe, arguments: argparse.Namespace) -> None:
    from deit_tract.train import (
        loop,  # torch and timm take seconds to import, which --list and mistakes need not wait for
    )

    weights = getattr(arguments, "checkpoint", None)
    if recipe.model.pretrained and not hasattr(arguments, "checkpoint"):
        raise UserError(
            "recipe", f"{recipe.name} starts from given weights", "use finetune.py --checkpoint ..."
        )
    if hasattr(arguments, "checkpoint") and weights is None:
        raise UserError(
            "command line",
            "--checkpoint is missing",
            "give the weights to fine-tune; else use train.py",
        )
    summary = loop.train(recipe, _folder(recipe, arguments), weights)
    main = int(os.environ.get("RANK", 0)) == 0
    if summary["exit"] == "preempted":
        if main:
            print(
                f"preempted: saved step {summary['steps']:,}; the same command goes on from it",
                flush=True,
            )
        sys.exit(PREEMPTED)
    if main:
        print(_ending(summary, recipe.headline))


def _ending(summary: dict, headline: str) -> str:
    """The last evaluation, which is the result, and beside it the best one, which the evaluated images chose."""
    shown = (headline, f"ema_{headline}")
    final, best = (
        ", ".join(f"{key} {value:.2f}" for key, value in summary[part].items() if key in shown)
        for part in ("final", "best")
    )
    chosen = (
        f" (best {best} at step {summary['best']['step']:,})"
        if summary["best"] != summary["final"]
        else ""
    )
    return (
        f"finished: {final}{chosen} after {summary['steps']:,} steps in {summary['seconds']:.0f} s"
    )


def listing() -> str:
    """One line a recipe: name, what it is, expected top-1, cost."""
    rows = []
    for name in source.names():
        recipe = load_recipe(name)
        expected = recipe.expected
        rows.append(
            (
                name,
                recipe.about,
                "unknown" if expected is None else f"{expected:g} %",
                recipe.expect.cost or "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in rows
    )


def _report(error: UserError) -> int:
    """Print the error's lines and return the exit code.

    Processes that do not know each other yet all find the same mistake, and process 0 speaks for them.
    """
    rank, torch = int(os.environ.get("RANK", 0)), sys.modules.get("torch")
    if rank and not (torch and torch.distributed.is_initialized()):
        time.sleep(5)  # the first to end makes the launcher end the others
        return 2
    for line in str(error).splitlines():
        print(f"error: {line}" if rank == 0 else f"error: process {rank}: {line}", file=sys.stderr)
    return 2
