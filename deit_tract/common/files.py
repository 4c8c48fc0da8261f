"""Atomic writes, and disk errors as one line."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit_tract.common.errors import UserError
from deit_tract.common.text import short

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NAMES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_DISK = _FULL | _DENIED | _NAMES | {errno.EIO}


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


def check_new_file(path: Path, option: str) -> None:
    """Raise UserError if `path`, named by a command line's option, cannot be written as a file."""
    where = f"{option} {short(str(path))}"
    _check_name(path, where)
    if not path.parent.is_dir():
        raise UserError(where, "its folder does not exist", "make it first")
    if path.is_dir():
        raise UserError(where, "is a folder", "name a file")
    if path.exists() and not path.is_file():
        raise UserError(where, "is not a plain file", "name another file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(where, "its folder cannot be written", "name a file elsewhere")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(where, "cannot be written", "name another file")


def check_new_folder(path: Path, option: str) -> None:
    """Raise UserError if `path`, named by a command line's option, cannot become a folder."""
    where = f"{option} {short(str(path))}"
    whole = Path(os.path.abspath(path))
    _check_name(whole, where)
    place = whole
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        what = "is a file" if place == whole else f"{place} is a file"
        raise UserError(where, what, "name a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(where, f"{place} cannot be written", "choose another place")


def _check_name(path: Path, where: str) -> None:
    """Raise UserError for a name that no file can have, or that no text file could repeat."""
    if not path.name:
        raise UserError(where, "is not a name", "name a file or a folder")
    if not str(path).isprintable():
        raise UserError(where, "has characters that cannot be printed", "choose a plain name")
    try:
        # what is written goes to a temporary name first
        os.lstat(path.with_name(f".{path.name}.{2**31}.tmp"))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise UserError(where, f"cannot be written ({error.strerror})") from None


def sync_folder(path: Path) -> None:
    """Fsync a folder, so that the names in it last and not just the contents of its files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
