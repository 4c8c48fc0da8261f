"""What RUN|FILE|timm:NAME|torchvision:NAME on a command line means: which weights, and of what."""

from dataclasses import dataclass
from pathlib import Path

import timm

from deit_tract.common.errors import UserError
from deit_tract.recipe.source import read_text
from deit_tract.train import checkpoint
from deit_tract.train.records import COMPLETE, check_finished

HUBS = ("timm:", "torchvision:")
MODEL, EMA = "model.safetensors", "ema.safetensors"
RECIPE = "recipe.yaml"
GIVE = "give a run's folder, a file of weights or timm:NAME"


@dataclass(frozen=True)
class WeightsSource:
    """Weights to start from, to evaluate or to export.

    kind: "hub", a hub's name; "run", a run's folder; "checkpoint", the folder of one of its
    checkpoints; "export", a folder that tools/export.py wrote; "folder", any other folder with
    model.safetensors; "file".
    """

    given: str  # as named on the command line
    kind: str
    weights: str  # the file, or the hub's name with its prefix
    run: Path | None = None  # the run's folder, of a file too that lies in one
    step: int | None = None
    best: bool = False  # of the best evaluation of the run, not of its newest checkpoint
    exported: Path | None = None  # the exported folder, of a file too that lies in one

    def __str__(self) -> str:
        return self.given

    @property
    def recipe(self) -> Path | None:
        """The recipe that the weights were trained by, if it lies with them."""
        if self.kind == "hub":
            return None
        folder = self.run or Path(self.weights).parent
        return folder / RECIPE if (folder / RECIPE).is_file() else None


def find_weights(
    given: str, step: int | None = None, ema: bool = False, best: bool = False
) -> WeightsSource:
    """Find the weights that a person names.

    step, best: which checkpoint of a run (default: the newest intact one); ema: its averages.
    Raises UserError if there are none, or if a finished run's folder is not complete.
    """
    path = Path(given)
    if best and step is not None:
        raise UserError("--best", "chooses the step", "leave out --step")
    if given.startswith(HUBS):
        return WeightsSource(given, "hub", given)
    if path.is_file():
        return _of_file(given, "file", path)
    if not path.is_dir():
        what = "is it timm:NAME?" if timm.is_model(given) else GIVE
        raise UserError(given, "no such file or folder", what)
    run = _run_around(path)
    if run is not None and checkpoint.step_of(path.resolve()) is not None:
        return _of_run(given, "checkpoint", run, checkpoint.step_of(path.resolve()), ema)
    if (path / MODEL).is_file():
        kind = "export" if (path / "config.json").is_file() else "folder"
        return _of_file(given, kind, path / MODEL)
    if (path / RECIPE).is_file() or (path / checkpoint.FOLDER).is_dir():
        check_finished(path)
        return _of_run(given, "run", path, step, ema, best)
    raise UserError(given, "holds neither a run nor weights", GIVE)


def recipe_of_run(folder: Path) -> Path:
    """Return the recipe in a run's folder. Raises UserError if the folder holds no run."""
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(folder, "holds no run", "give a folder that train.py wrote")
    if not read_text(path).endswith("\n"):
        raise UserError(path, "is cut off", COMPLETE)
    return path


def _of_run(
    given: str, kind: str, run: Path, step: int | None, ema: bool, best: bool = False
) -> WeightsSource:
    place = checkpoint.find(run, step, best)
    weights = place / (EMA if ema else MODEL)
    if not weights.is_file():
        instead = "leave out --ema; ema.decay of the recipe keeps them"
        raise UserError(run, "has no averaged weights", instead)
    found = checkpoint.step_of(place, place.name.partition("_")[0])
    return WeightsSource(given, kind, str(weights), run, found, best)


def _of_file(given: str, kind: str, file: Path) -> WeightsSource:
    exported = file.parent if (file.parent / "config.json").is_file() else None
    return WeightsSource(given, kind, str(file), _run_around(file.parent), exported=exported)


def _run_around(place: Path) -> Path | None:
    """Return the run that a folder is a checkpoint of: RUN of RUN/checkpoints/step_00000012."""
    place = place.resolve()
    run = place.parent.parent
    inside = place.parent.name == checkpoint.FOLDER and (run / RECIPE).is_file()
    return run if inside else None
