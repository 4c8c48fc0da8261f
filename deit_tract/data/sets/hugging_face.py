"""Data sets of the Hugging Face library: from its hub, or saved to disk."""

import importlib.util
import io
import os
import re
from pathlib import Path

import numpy as np

from deit_tract.common.errors import UserError
from deit_tract.data.sets.images import Images, Texts

IMAGENET_SUFFIX = re.compile(r"_n\d{8}(?=\.\w+$)")


class HuggingFace(Images):
    """A map-style data set, its columns of images and of class labels found by their types.

    Ordered by the images' file names. Raises UserError if a column or the names are missing.
    """

    def __init__(self, dataset, root: object, mode: str, ordered: bool = True):
        from datasets import ClassLabel, Image

        self.root, self.mode = root, mode
        self._image, label = (_column(dataset, kind, root) for kind in (Image, ClassLabel))
        undecoded = Image(decode=False)
        self._data = dataset.select_columns(self._image).cast_column(self._image, undecoded)
        self.classes = dataset.features[label].names
        labels = dataset.select_columns(label).with_format("arrow")[:][label].to_numpy()
        if labels.min() < 0:
            raise UserError(root, "holds images without a label", "take a split that has them")
        names = self._file_names()
        if ordered and "" in names:
            what = "has images without file names, by which the reference orders them"
            raise UserError(root, what, "with data.verify=false they keep their order")
        texts = [IMAGENET_SUFFIX.sub("", name) for name in names]
        keys = list(zip(labels.tolist(), texts, strict=True))
        self._order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
        self.labels = labels[self._order].astype(np.int32)
        self._names = Texts(names[i] for i in self._order)

    def _file_names(self) -> list[str]:
        names = []
        # slices of the file, nothing copied
        for table in self._data.with_format("arrow").iter(1000):
            for chunk in table[self._image].chunks:
                paths = (path.as_py() or "" for path in chunk.field("path"))
                names += map(os.path.basename, paths)
        return names

    def name(self, index: int) -> str:
        return self._names[index] or f"row {self._order[index]}"

    def open(self, index: int) -> io.BytesIO | str:
        image = self._data[int(self._order[index])][self._image]
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]


def _column(dataset, kind: type, root: object) -> str:
    for name, feature in dataset.features.items():
        if isinstance(feature, kind):
            return name
    columns = ", ".join(dataset.features)
    raise UserError(root, f"has no column of type {kind.__name__}", f"its columns: {columns}")


def open_saved(place: Path, mode: str, ordered: bool) -> HuggingFace:
    """Open what save_to_disk wrote; timm's reader knows only the hub and its caches."""
    _need_package()
    from datasets import load_from_disk

    try:
        return HuggingFace(load_from_disk(str(place)), place, mode, ordered)
    except (OSError, ValueError) as error:
        what = f"cannot be read as a saved data set ({error})"
        raise UserError(place, what, "save it again") from None


def open_hub(name: str, parts: tuple[str, ...], mode: str, ordered: bool) -> HuggingFace:
    """Open the first of a set's parts that exists, through timm's reader."""
    _need_package()
    from timm.data.readers.reader_hfds import ReaderHfds

    failures = []
    for part in parts:
        try:
            dataset = ReaderHfds(name, split=part).dataset
            return HuggingFace(dataset, f"hfds/{name}/{part}", mode, ordered)
        except UserError:
            raise
        except Exception as error:  # the hub, its cache and every format's reader raise anything
            failures.append(" ".join(str(error).split()))
    what = f"cannot be loaded ({failures[0]})"
    raise UserError(f"hfds/{name}", what, "is the name right, and access granted?")


def _need_package() -> None:
    if importlib.util.find_spec("datasets") is None:
        what = "Hugging Face data sets need the package 'datasets'"
        raise UserError("data.dir", what, "pip install datasets")
