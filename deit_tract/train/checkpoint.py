"""Checkpoints: written beside, fsynced and renamed, so that one is whole or not there; verified before they load.

A checkpoint is a folder `step_00012345`: model.safetensors (plain timm keys), ema.safetensors where there is one,
optimizer.pt (optimizer and gradient scaler), and progress.json (step, clock, best, checksums of the other files).
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors, sync_folder, write_through


def save(
    folder: Path, step: int, weights: dict[str, dict], optimizer: dict, progress: dict, keep: int
) -> Path:
    """Write checkpoint `step` below `folder`, then drop all but the `keep` newest up to it.

    weights: {"model": state dict, "ema": state dict}. Raises UserError where the disk refuses; what was there stays.
    """
    final, temporary = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    last = max(_steps(folder), default=None)
    stays = f"step {last} is intact" if last is not None else "there was no checkpoint before it"
    try:
        with disk_errors(final, f"{stays}; free some space and run the same command again"):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            files = {
                f"{name}.safetensors": serialize(_contiguous(state))
                for name, state in weights.items()
            }
            files["optimizer.pt"] = _pickled(optimizer)
            digests = {name: write_through(temporary / name, data) for name, data in files.items()}
            text = json.dumps({"step": step, **progress, "files": digests}, indent=1)
            write_through(temporary / "progress.json", text.encode())
            sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)  # of the same step, when it was found broken
            os.rename(temporary, final)
            sync_folder(folder)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in sorted(other for other in _steps(folder) if other <= step)[:-keep]:
        shutil.rmtree(folder / f"step_{old:08d}")
    return final


class Writer:
    """Saves checkpoints, one at a time: before `save` returns, or from a copy of the state while training goes on."""

    def __init__(self, background: bool):
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future | None = None

    def save(
        self,
        folder: Path,
        step: int,
        weights: dict[str, dict],
        optimizer: dict,
        progress: dict,
        keep: int,
    ):
        """As the function `save`; in the background its error comes with the next call, or from `wait`."""
        if self._pool is None:
            save(folder, step, weights, optimizer, progress, keep)
            return
        self.wait()
        state = _copied((weights, optimizer, progress))
        self._pending = self._pool.submit(save, folder, step, *state, keep)

    def wait(self) -> None:
        """Until all is written. Raises UserError where the disk refused."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def shutdown(self) -> None:
        """Let a save that is under way end."""
        if self._pool is not None:
            self._pool.shutdown()


def _copied(state: Any) -> Any:
    """The same structure with its tensors copied to the CPU, out of the next step's reach."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(value) for value in state)
    return state


def newest(folder: Path, say: Callable[[str], None] = print, tidy: bool = True) -> Path | None:
    """The newest whole checkpoint, each broken one before it said; None where there is none at all.

    `tidy` removes what a killed save left; it must be off for another run's folder, which may just be saving.
    Raises UserError where there are checkpoints and none is whole: starting anew would be a silent loss.
    """
    for leftover in folder.glob(".step_*.tmp") if tidy else ():
        shutil.rmtree(leftover, ignore_errors=True)
    steps = sorted(_steps(folder), reverse=True)
    for step in steps:
        path = folder / f"step_{step:08d}"
        problem = verify(path)
        if problem is None:
            return path
        say(f"checkpoint {path} is not whole ({problem}); falling back to the one before")
    if steps:
        raise UserError(folder, "no checkpoint is whole", "remove the folder to start from step 0")
    return None


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if every file has the size and SHA-256 it was written with."""
    try:
        files = json.loads((path / "progress.json").read_text(encoding="utf-8"))["files"]
        for name, digest in files.items():
            if _digest(path / name) != digest:
                return f"{name} is truncated or changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read(path: Path) -> tuple[dict[str, dict], dict, dict[str, Any]]:
    """A verified checkpoint as (weights, optimizer, progress), on the CPU.

    Raises UserError where optimizer.pt holds anything but tensors and plain values: its checksum says that it is whole,
    not who wrote it.
    """
    weights = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    try:
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    except UnpicklingError:
        what = "holds what train.py never wrote; nothing of it was run"
        raise UserError(path / "optimizer.pt", what, "use a checkpoint of your own") from None
    return weights, optimizer, json.loads((path / "progress.json").read_text(encoding="utf-8"))


def _steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in folder.glob("step_*") if path.name[5:].isdigit()]


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in state.items()}


def _pickled(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _digest(path: Path) -> list:
    with open(path, "rb") as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
