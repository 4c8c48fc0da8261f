"""What a launch must satisfy for a recipe: used by the run, `--plan` and submit.py alike."""

from importlib.util import find_spec
from pathlib import Path

from deit_tract.common.errors import UserError
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import Recipe, load_recipe


def lanes_of(rank: int, processes: int, lanes: int) -> range:
    """The lanes that a process computes, one after another: rank, rank + processes, ...

    Raises UserError where a process would have none.
    """
    if processes > lanes:
        what = f"{processes} processes for batch.lanes {lanes}"
        raise UserError(
            "launch", what, f"start at most {lanes}; batch.lanes is part of the experiment"
        )
    return range(rank, lanes, processes)


def check_trackers(recipe: Recipe) -> None:
    """Raises UserError where a tracker is not installed: Accelerate would leave it out without a word."""
    for tracker in recipe.log.trackers:
        if find_spec(tracker) is None:
            raise UserError("log.trackers", f"{tracker} is not installed", f"pip install {tracker}")


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Raises UserError where a run of another recipe lies in the folder."""
    path = folder / "recipe.yaml"
    changed = differences(load_recipe(str(path)), recipe) if path.exists() else []
    if changed:
        what = f"holds a run of another recipe ({'; '.join(changed)})"
        raise UserError(folder, what, "choose another --output, or put the values back")
