"""A run's folder: who may write in it, which recipe it belongs to, which machine it ran on."""

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
from typing import Any, TextIO

import torch
from accelerate import Accelerator

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors, write_atomic
from deit_tract.data.guards import check_opens, fingerprint, other_classes, other_images
from deit_tract.data.sets.images import Splits
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import Recipe
from deit_tract.recipe.source import ROOT
from deit_tract.train.records import FINGERPRINT, read_fingerprint

PACKAGES = (
    "torch torchvision timm accelerate deepspeed numpy pillow simplejpeg scikit-learn pydantic"
)


class Lock:
    """Permits one run at a time in a folder.

    The lock ends with its process, however that ends, and is not inherited. POSIX record locks
    (fcntl) are passed on to other machines by NFS and Lustre.
    """

    def __init__(self, folder: Path, name: str = ".lock"):
        self.path = folder / name
        self._file: TextIO | None = None

    def take(self, patience: float = 10.0) -> None:
        """Take the lock, waiting for a run that is about to end.

        Raises UserError if another process still holds it after `patience` seconds. On a file
        system without locks, runs are not locked.
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
        what = f"a run is in progress here ({holder})"
        return UserError(self.path.parent, what, "wait for it, or use another --output")

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(folder: Path) -> bool | None:
    """Tell whether a run is in progress in a folder; None if nothing can tell.

    Changes nothing, and needs no permission to write.
    """
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def check_data(folder: Path, recipe: Recipe, data: Splits, resumes: bool) -> dict[str, Any]:
    """Return the data's fingerprint, after comparing it with that of the run in the folder.

    Raises UserError if a run would go on with other data, or if its validation images are seen to
    be unreadable. Runs of older versions have no fingerprint.
    """
    now = fingerprint(data)
    before = read_fingerprint(folder) if resumes else None
    if before is not None:
        classes = other_classes(before["classes"], now["classes"])
        if classes is not None:
            what = f"was trained on other classes (now {classes})"
            raise UserError(folder, what, "give its data, or another --output")
        images = other_images(before, now)
        if images is not None and recipe.data.verify:
            what = f"was trained on other data (now {images})"
            instead = "give its data or another --output, or set data.verify=false to go on anyway"
            raise UserError(folder, what, instead)
        if images is not None:
            print(f"data.verify=false: the run goes on with other data ({images})", flush=True)
    check_opens(data.val)
    return now


def describe_run(
    folder: Path, recipe: Recipe, accelerator: Accelerator, data: dict[str, Any]
) -> None:
    """Write what a run is: its recipe, machine and data's fingerprint.

    Called when nothing can refuse the start any more, so that a corrected command finds no other
    run in the folder.
    """
    write_atomic(folder / FINGERPRINT, json.dumps(data) + "\n")
    environment = json.dumps(_environment(accelerator), indent=1)
    write_atomic(folder / "environment.json", environment + "\n")
    write_atomic(folder / "recipe.yaml", explain(recipe))


def _environment(accelerator: Accelerator) -> dict:
    """Return versions, commit, command and hardware."""
    device = accelerator.device
    return {
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES.split()},
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
