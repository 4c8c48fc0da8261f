"""Checkpoints: complete or absent, and verified before they load.

A checkpoint is a folder `step_00012345`, written under a temporary name, fsynced and renamed. It
has model.safetensors (plain timm keys), ema.safetensors if there is an average, optimizer.pt
(optimizer and gradient scaler) and progress.json (step, clock, best, checksums of the other files).
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
NEEDED = {"model.safetensors", "optimizer.pt"}


def save(
    folder: Path, step: int, weights: dict[str, dict], optimizer: dict, progress: dict, keep: int
) -> Path:
    """Write checkpoint `step` below `folder`, then remove all but the `keep` newest up to it.

    weights: {"model": state dict, "ema": state dict}. Raises UserError if the disk refuses; earlier
    checkpoints stay then.
    """
    final = path_of(folder, step)
    temporary = folder / f".{final.name}.tmp"
    last = max(steps(folder), default=None)
    stays = f"step {last} is intact" if last is not None else "there was no checkpoint before it"
    try:
        with disk_errors(final, f"{stays}; free some space and run the same command again"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write(temporary, step, weights, optimizer, progress)
            shutil.rmtree(final, ignore_errors=True)  # a broken one of the same step
            os.rename(temporary, final)
            sync_folder(folder)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in [other for other in steps(folder) if other <= step][:-keep]:
        shutil.rmtree(path_of(folder, old))
    return final


def _write(
    folder: Path, step: int, weights: dict[str, dict], optimizer: dict, progress: dict
) -> None:
    files = {f"{name}.safetensors": _serialized(state) for name, state in weights.items()}
    files["optimizer.pt"] = _pickled(optimizer)
    digests = {name: write_through(folder / name, data) for name, data in files.items()}
    content = {"step": step, **progress, "files": digests}
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


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step that a checkpoint's folder is named after; None for another name."""
    number = re.fullmatch("step_([0-9]{8,18})", path.name)
    return int(number[1]) if number else None


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint below `folder`, rising; none of them is verified."""
    found = [step_of(path) for path in folder.glob("step_*")]
    return sorted(step for step in found if step is not None)


def find(run: Path, step: int | None = None) -> Path:
    """Return a run's checkpoint of a step, or its newest one; either is intact.

    Changes nothing in the run's folder, which may be in use. Raises UserError if there is none.
    """
    folder = run / FOLDER
    if step is not None:
        found = path_of(folder, step)
        if not found.is_dir():
            there = ", ".join(map(str, steps(folder))) or "none"
            raise UserError(run, f"has no checkpoint of step {step}", f"it has {there}")
        problem = verify(found)
        if problem is not None:
            raise UserError(found, f"is not intact ({problem})", "choose another step")
        return found
    found = newest(folder, tidy=False)
    if found is None:
        raise UserError(run, "this run has no checkpoint yet")
    return found


def newest(folder: Path, say: Callable[[str], None] = print, tidy: bool = True) -> Path | None:
    """Return the newest intact checkpoint, or None if there is none; reports those it skips.

    `tidy` removes what a killed save left; it must be off for another run's folder, which may be
    saving just now. Raises UserError if all checkpoints are broken: to start over would silently
    lose a run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(folder, "is not a folder", "move it away to start from step 0")
    for leftover in folder.glob(".step_*.tmp") if tidy else ():
        shutil.rmtree(leftover, ignore_errors=True)
    found = steps(folder)
    for step in reversed(found):
        path = path_of(folder, step)
        problem = verify(path)
        if problem is None:
            return path
        say(f"checkpoint {path} is not intact ({problem}); falling back to the one before")
    if found:
        raise UserError(folder, "no checkpoint is intact", "remove the folder to start from step 0")
    return None


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None.

    Compares the size and SHA-256 of every file with those at writing.
    """
    try:
        progress = read_progress(path)
        if progress.step != step_of(path):
            return f"progress.json is of step {progress.step}"
        for name in sorted(NEEDED - progress.files.keys()):
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
