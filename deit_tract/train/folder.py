"""A run's folder: who may write in it, which recipe it belongs to, and what it says of the machine."""

import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors, write_atomic
from deit_tract.recipe.describe import explain
from deit_tract.recipe.launch import check_folder
from deit_tract.recipe.resolve import Recipe
from deit_tract.recipe.source import ROOT

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "deepspeed", "numpy", "pillow", "simplejpeg",
             "scikit-learn", "pydantic")  # fmt: skip


class Lock:
    """One run at a time in a folder. The lock ends with its process, however that ends, and is not inherited.

    POSIX record locks (fcntl), which NFS and Lustre pass on to other machines.
    """

    def __init__(self, folder: Path):
        self.path, self._file = folder / ".lock", None

    def take(self, patience: float = 10.0) -> None:
        """Raises UserError where another process still holds it after `patience` seconds; the one before may be ending.

        A file system without locks is taken as it is.
        """
        with disk_errors(self.path.parent, "choose another --output"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (held until release)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._refused() from None
                time.sleep(0.2)
            except OSError:
                return
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"host {socket.gethostname()}, pid {os.getpid()}\n")
        self._file.flush()

    def _refused(self) -> UserError:
        self._file.seek(0)
        holder = self._file.read().strip() or "another process"
        self.release()
        return UserError(
            self.path.parent,
            f"a run is going on here ({holder})",
            "wait for it, or use another --output",
        )

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_folder(folder: Path, recipe: Recipe, accelerator: Accelerator) -> None:
    """Make a run's folder, or go on with it. Raises UserError if another recipe ran there or it cannot be written."""
    with disk_errors(folder, "choose another --output"):
        folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder, recipe)
    write_atomic(folder / "recipe.yaml", explain(recipe))
    write_atomic(
        folder / "environment.json", json.dumps(_environment(accelerator), indent=1) + "\n"
    )


def _environment(accelerator: Accelerator) -> dict:
    """Versions, commit, command and hardware."""
    device = accelerator.device
    return {
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "engine": accelerator.distributed_type.value,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout
