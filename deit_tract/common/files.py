"""Atomic writes, and disk errors as one line."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit_tract.common.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_DISK = _FULL | _DENIED | {errno.EIO}


@contextmanager
def disk_errors(path: Path, instead: str) -> Iterator[None]:
    """Turn what a full, read-only or failing disk raises into a UserError about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise UserError(path, f"cannot be written ({error.strerror})", instead) from None


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's text in one step: a reader sees either the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path, "free some space or choose another --output"):
        write_through(temporary, text.encode())
        os.replace(temporary, path)


def write_through(path: Path, data: bytes) -> list[int | str]:
    """Write and fsync a file, and return its size and SHA-256.

    Used instead of the libraries' own writers, which hide the error of a full disk.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return [len(data), hashlib.sha256(data).hexdigest()]


def sync_folder(path: Path) -> None:
    """Fsync a folder, so that the names in it last and not just the contents of its files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
