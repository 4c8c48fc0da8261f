"""Images in uncompressed tars, read in place."""

import io
import json
import os
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data.readers.reader_image_in_tar import extract_tarinfos
from torchvision.datasets.folder import IMG_EXTENSIONS

from deit_tract.common.errors import UserError
from deit_tract.data.sets.images import Images, Texts

# Bytes of tars from which their index is kept; timm reads about 1 GB/s to make one
INDEX_FROM = 2**30
# Tars that a process keeps open; one per class would exceed the usual limit of 1,024 files
FEW_TARS = 64


class Tars(Images):
    """A tar of class folders, a tar of a tar per class, or a folder of a tar per class.

    timm's scan finds the images. They are read by their place in the file, since forked workers
    share a TarFile's position. The index of large tars is kept beside them (`.NAME.index.npz`)
    until they change. Raises UserError if a tar cannot be read or is cut off.
    """

    def __init__(self, path: Path, mode: str):
        self.root, self.mode = path, mode
        self.tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        stats = [(tar.name, tar.stat()) for tar in self.tars]
        stamp = json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
        kept = path.parent / f".{path.name}.index.npz"
        index = _load_index(kept, stamp)
        if index is None:
            index = {"stamp": np.array(stamp), **_scan(path, self.tars)}
            if sum(stat.st_size for _, stat in stats) >= INDEX_FROM:
                _save_index(kept, index)
        self.classes, self.labels = index["classes"].tolist(), index["labels"]
        self._tar, self._offset, self._size = index["tar"], index["offset"], index["size"]
        self._names = Texts(())
        self._names.bytes, self._names.ends = index["names"], index["ends"]
        self._files: dict[int, io.FileIO] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def name(self, index: int) -> str:
        return self._names[index]

    def where(self, index: int) -> str:
        return f"{self.tars[self._tar[index]]}:{self.name(index)}"

    def open(self, index: int) -> io.BytesIO:
        number = int(self._tar[index])
        file = self._files.get(number) or open(self.tars[number], "rb", buffering=0)  # noqa: SIM115
        if len(self.tars) <= FEW_TARS:
            self._files[number] = file
        return io.BytesIO(os.pread(file.fileno(), self._size[index], self._offset[index]))


def _scan(path: Path, tars: Sequence[Path]) -> dict[str, np.ndarray]:
    """Index the tars: the classes, and each image's label, name, tar, offset and size."""
    options = {"cache_tarinfo": False, "extensions": set(IMG_EXTENSIONS), "sort": False}
    try:
        samples, targets, class_to_idx, _ = extract_tarinfos(os.path.abspath(path), **options)
    except (OSError, tarfile.TarError) as error:
        what = f"cannot be read as a tar ({error})"
        raise UserError(path, what, "download or pack it again") from None
    except (ValueError, AssertionError):
        raise UserError(path, "holds no images", f"read are {' '.join(IMG_EXTENSIONS)}") from None
    number = {tar.name: position for position, tar in enumerate(tars)}
    class_of = {label: name for name, label in class_to_idx.items()}
    rows = []
    for (member, tar, inner), label in zip(samples, targets, strict=True):
        name = f"{inner.name}:{member.name}" if inner else member.name
        offset = member.offset_data + (inner.offset_data if inner else 0)
        place = (number[tar] if tar else 0, offset, member.size)
        rows.append((class_of[label], *os.path.split(member.name), name, place))
    rows.sort()
    return _columns(rows)


def _columns(rows: list[tuple]) -> dict[str, np.ndarray]:
    """Turn the sorted rows (class, folder, file, name, place) into arrays."""
    names = Texts(name for *_, name, _ in rows)
    classes, labels = np.unique([row[0] for row in rows], return_inverse=True)
    tar, offset, size = np.array([place for *_, place in rows], np.int64).T
    columns = {"tar": tar, "offset": offset, "size": size, "names": names.bytes, "ends": names.ends}
    return {"classes": classes, "labels": labels.astype(np.int32)} | columns


def _load_index(path: Path, stamp: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as file:
            return dict(file) if str(file["stamp"]) == stamp else None
    except (OSError, ValueError, KeyError):  # there is none, or it is not one of ours
        return None


def _save_index(path: Path, index: dict[str, np.ndarray]) -> None:
    """Write it completely or not at all, as several processes may do so at once."""
    part = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            np.savez(file, **index)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        what = f"{path} cannot be written ({error}): every start reads the tars again"
        warnings.warn(what, stacklevel=2)
