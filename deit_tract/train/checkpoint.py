"""Checkpoints: complete or absent, and verified before they load.

A checkpoint is a folder `step_00012345`, written under a temporary name, fsynced and renamed. It
has model.safetensors (plain timm keys), ema.safetensors if there is an average, optimizer.pt
(optimizer and gradient scaler) and progress.json (step, clock, best, checksums of the other files).
`best_00012345` has the weights of the best evaluation, without optimizer.pt, and
`milestone_00012345` those of a step in save.milestones, which are never removed.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save as serialize

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors, sync_folder, write_through
from deit_tract.common.text import brief
from deit_tract.models.weights import read_tensors
from deit_tract.train.records import digest, read_progress

FOLDER = "checkpoints"  # of a run
STEP, BEST, MILESTONE = "step", "best", "milestone"  # kinds of folders, by their prefix
WEIGHTS = {"model.safetensors"}
NEEDED = {STEP: WEIGHTS | {"optimizer.pt"}, BEST: WEIGHTS, MILESTONE: WEIGHTS}
SPACE = "free some space and run the same command again"


def save(
    folder: Path, step: int, weights: dict[str, dict], optimizer: dict, progress: dict, keep: int
) -> Path:
    """Write checkpoint `step` below `folder`, then remove all but the `keep` newest up to it.

    weights: {"model": state dict, "ema": state dict}. Raises UserError if the disk refuses; earlier
    checkpoints stay then.
    """
    final = path_of(folder, step)
    last = max(steps(folder), default=None)
    stays = f"step {last} is intact" if last is not None else "there was no checkpoint before it"
    with _complete(final, f"{stays}; {SPACE}") as part:
        _write(part, weights, optimizer, {"step": step, **progress})
    for old in [other for other in steps(folder) if other <= step][:-keep]:
        shutil.rmtree(path_of(folder, old))
    bests = steps(folder, BEST)
    needed = {_up_to(bests, kept) for kept in steps(folder)} | set(bests[-1:])
    _remove_bests(folder, lambda best: best not in needed)
    return final


def save_best(folder: Path, step: int, weights: dict[str, dict], metrics: dict) -> None:
    """Write the weights of the best evaluation so far, which had these metrics.

    The best before it stays as long as the run could resume from a checkpoint before this step.
    """
    final = path_of(folder, step, BEST)
    with _complete(final, f"the best one before it is intact; {SPACE}") as part:
        _write(part, weights, None, {"step": step, "best": metrics})


def save_milestone(folder: Path, step: int, weights: dict[str, dict]) -> None:
    """Write the weights of a step for good; a run that repeats the step writes the same."""
    with _complete(path_of(folder, step, MILESTONE), SPACE) as part:
        _write(part, weights, None, {"step": step})


def _up_to(bests: list[int], step: int) -> int | None:
    """The best evaluation when a checkpoint was saved."""
    return max((best for best in bests if best <= step), default=None)


def _remove_bests(folder: Path, unwanted: Callable[[int], bool]) -> None:
    for step in filter(unwanted, steps(folder, BEST)):
        shutil.rmtree(path_of(folder, step, BEST))


@contextmanager
def _complete(final: Path, instead: str) -> Iterator[Path]:
    """A temporary folder that takes the place of `final` after the block, or is removed."""
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        with disk_errors(final, instead):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(final, ignore_errors=True)  # a broken one of the same step
            os.rename(temporary, final)
            sync_folder(final.parent)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(folder: Path, weights: dict[str, dict], optimizer: dict | None, progress: dict) -> None:
    files = {f"{name}.safetensors": _serialized(state) for name, state in weights.items()}
    if optimizer is not None:
        files["optimizer.pt"] = _pickled(optimizer)
    digests = {name: write_through(folder / name, data) for name, data in files.items()}
    content = {**progress, "files": digests}
    content["sha256"] = digest(json.loads(json.dumps(content)))  # as it will be read back
    text = json.dumps(content, indent=1)
    write_through(folder / "progress.json", text.encode())
    sync_folder(folder)


class Writer:
    """Saves checkpoints one at a time.

    In the background, training continues while a copy of the state is written.
    """

    def __init__(self, background: bool):
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future | None = None

    def save(
        self, folder: Path, step: int, weights: dict, optimizer: dict, progress: dict, keep: int
    ):
        """As the function `save`; a background error is raised by the next call or by `wait`."""
        if self._pool is None:
            save(folder, step, weights, optimizer, progress, keep)
            return
        self.wait()
        state = _copied((weights, optimizer, progress))
        self._pending = self._pool.submit(save, folder, step, *state, keep)

    def wait(self) -> None:
        """Wait until everything is written. Raises UserError if the disk refused."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def shutdown(self) -> None:
        """Let a save in progress finish."""
        if self._pool is not None:
            self._pool.shutdown()


def _copied(state: Any) -> Any:
    """Copy a structure and its tensors to the CPU, out of the next step's reach."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value) for value in state)
    return state


def path_of(folder: Path, step: int, kind: str = STEP) -> Path:
    return folder / f"{kind}_{step:08d}"


def step_of(path: Path, kind: str = STEP) -> int | None:
    """Return the step that a checkpoint's folder is named after; None for another name."""
    number = re.fullmatch(f"{kind}_([0-9]{{8,18}})", path.name)
    return int(number[1]) if number else None


def steps(folder: Path, kind: str = STEP) -> list[int]:
    """Return the steps that have a checkpoint below `folder`, rising; none of them is verified."""
    found = [step_of(path, kind) for path in folder.glob(f"{kind}_*")]
    return sorted(step for step in found if step is not None)


def find(run: Path, step: int | None = None, best: bool = False) -> Path:
    """Return a run's checkpoint of a step, of the best evaluation, or the newest one; it is intact.

    A milestone counts as its step's if that has no checkpoint any more.

    Changes nothing in the run's folder, which may be in use. Raises UserError if there is none.
    """
    folder = run / FOLDER
    if best:
        return _find_best(run)
    if step is not None:
        places = (path_of(folder, step, kind) for kind in (STEP, MILESTONE))
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            kept = sorted({*steps(folder), *steps(folder, MILESTONE)})
            there = ", ".join(map(str, kept)) or "none"
            raise UserError(run, f"has no checkpoint of step {step}", f"it has {there}")
        problem = verify(found)
        if problem is not None:
            raise UserError(found, f"is not intact ({problem})", "choose another step")
        return found
    found = newest(folder, tidy=False)
    if found is None:
        raise UserError(run, "this run has no checkpoint yet")
    return found


def _find_best(run: Path) -> Path:
    bests = steps(run / FOLDER, BEST)
    if not bests:
        instead = "leave out --best; save.best of the recipe keeps them"
        raise UserError(run, "has no weights of its best evaluation", instead)
    found = path_of(run / FOLDER, bests[-1], BEST)
    problem = verify(found)
    if problem is not None:
        raise UserError(found, f"is not intact ({problem})", "leave out --best")
    return found


def newest(folder: Path, say: Callable[[str], None] = print, tidy: bool = True) -> Path | None:
    """Return the newest intact checkpoint, or None if there is none; reports those it skips.

    `tidy` removes what a killed save left, and bests of steps that are to be repeated; it must be
    off for another run's folder, which may be saving just now. Raises UserError if all checkpoints
    are broken: to start over would silently lose a run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is not a folder", "move it away to start from step 0")
    for kind in NEEDED if tidy else ():
        for leftover in folder.glob(f".{kind}_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
    found = steps(folder)
    for step in reversed(found):
        path = path_of(folder, step)
        problem = verify(path)
        if problem is None:
            if tidy:
                _remove_bests(folder, lambda best, last=step: best > last)
            return path
        say(f"checkpoint {path} is not intact ({problem}); falling back to the one before")
    if found:
        raise UserError(folder, "no checkpoint is intact", "remove the folder to start from step 0")
    if tidy:
        _remove_bests(folder, lambda best: True)
    return None


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None.

    Compares the size and SHA-256 of every file with those at writing.
    """
    try:
        progress = read_progress(path)
        kind = path.name.partition("_")[0]
        if progress.step != step_of(path, kind):
            return f"progress.json is of step {progress.step}"
        for name in sorted(NEEDED[kind] - progress.files.keys()):
            return f"progress.json does not know {name}"
        for name, known in progress.files.items():
            if _digest(path / name) != known:
                return f"{name} is truncated or changed"
    except UserError as error:
        return f"{Path(error.args[0]).name} {error.args[1]}"
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    return None


def read(path: Path) -> tuple[dict[str, dict], dict, dict[str, Any]]:
    """Read a verified checkpoint as (weights, optimizer, progress), on the CPU.

    Raises UserError if a file has anything but tensors and plain values: its checksum tells that it
    is intact, not who wrote it.
    """
    progress = read_progress(path)
    names = [name for name in progress.files if name.endswith(".safetensors")]
    weights = {Path(name).stem: read_tensors(str(path / name)) for name in names}
    own = "use a checkpoint of your own"
    try:
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    except UnpicklingError:
        what = "contains objects train.py never writes; nothing was executed"
        raise UserError(path / "optimizer.pt", what, own) from None
    except Exception as error:  # whatever the format's reader raises
        raise UserError(path / "optimizer.pt", f"cannot be read ({brief(error)})", own) from None
    return weights, optimizer, progress.model_dump()


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn what an optimizer raises about another's state into a UserError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"is not of this recipe's optimizer ({type(error).__name__}: {brief(error)})"
        raise UserError(path / "optimizer.pt", what, "use a checkpoint of this run") from None


def _serialized(state: dict[str, torch.Tensor]) -> bytes:
    return serialize({key: value.contiguous() for key, value in state.items()})


def _pickled(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
