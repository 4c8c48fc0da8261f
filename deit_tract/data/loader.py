"""Samples and batches: dictionaries of named tensors, with data errors beside them."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, default_collate

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.stream import View

Batch = dict[str, Any]  # tensors by name, or lists of a tensor per sample


class Loaded(NamedTuple):
    """A sample or a batch as a worker hands it over."""

    data: Batch | None
    error: UserError | None = None  # in place of the data
    replaced: Sequence[str] = ()  # errors of images that others took the place of


class Views(Dataset):
    """Transformed samples {"image": ..., "label": ...}, fetched by View.

    A transform returns a sample's image, or a dictionary of its named tensors; a label of None is
    left out.
    """

    def __init__(self, images: Dataset, transform: Callable, replace: bool = False):
        """replace: use another image, chosen by the view's seed, for one that cannot be read."""
        self.images = images
        self.transform = transform
        self.attempts = 100 if replace else 1

    def __getitem__(self, view: View) -> Loaded:
        return self.__getitems__([view])[0]

    def __getitems__(self, views: Sequence[View]) -> list[Loaded]:
        """The samples of a batch in order; an image with several views is read once."""
        places: dict[int, list[int]] = {}
        for place, view in enumerate(views):
            places.setdefault(view.index, []).append(place)
        samples: list = [None] * len(views)
        for index, same in places.items():
            read = self._read(index)
            for place in same:
                samples[place] = self._sample(views[place], read)
        return samples

    def _read(self, index: int) -> tuple | UserError:
        try:
            return self.images[index]
        except UserError as error:
            return error

    def _sample(self, view: View, read: tuple | UserError) -> Loaded:
        errors: list[UserError] = []
        while isinstance(read, UserError):
            errors.append(read)
            if len(errors) == self.attempts:
                return Loaded(None, errors[0])
            read = self._read(derive(view.seed, "replacement", len(errors) - 1) % len(self.images))
        image, label = read
        seed_generators(view.seed)
        sample = self.transform(image)
        if not isinstance(sample, dict):
            sample = {"image": sample}
        if label is not None:
            sample["label"] = label
        return Loaded(sample, replaced=[str(error) for error in errors])


def loader(
    dataset: Dataset, keys: Iterable, workers: int, pin_memory: bool, collate: Callable
) -> DataLoader:
    """A DataLoader over lists of keys, in order; `collate` makes a Loaded batch of samples."""
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate,
        prefetch_factor=4 if workers else None,
    )


def stacked(samples: list[Loaded]) -> Loaded:
    """A batch of samples of one size: each name a tensor."""
    return _batch_of(samples, default_collate)


def unstacked(samples: list[Loaded]) -> Loaded:
    """A batch of samples of different sizes: each name a list."""
    return _batch_of(samples, lambda data: {name: [one[name] for one in data] for name in data[0]})


def _batch_of(samples: list[Loaded], collate: Callable) -> Loaded:
    """A batch, or the first error of its samples.

    Raised in a worker, an error would reach the user as a traceback inside another one.
    """
    error = next((sample.error for sample in samples if sample.error is not None), None)
    if error is not None:
        return Loaded(None, error)
    replaced = [text for sample in samples for text in sample.replaced]
    return Loaded(collate([sample.data for sample in samples]), replaced=replaced)


def checked(loaded: Iterable[Loaded], replaced: "Replaced | None" = None) -> Iterator[Batch]:
    """A loader's batches; `replaced` counts replaced images. Raises the loader's UserError here."""
    waiting = iter(loaded)
    while True:
        try:
            batch, error, others = next(waiting)
        except StopIteration:
            return
        except (RuntimeError, *LOST) as failure:
            died = worker_died(failure)
            if died is None:
                raise
            raise died from None
        if error is not None:
            raise error
        if others:
            replaced.add(others)
        yield batch


LOST = (ConnectionError, EOFError)  # raised when taking a tensor from a process that is gone


def worker_died(error: Exception) -> UserError | None:
    """The message if a loader process died, which torch raises anywhere in the main thread."""
    if "DataLoader worker" not in str(error) and not isinstance(error, LOST):
        return None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    what = f"a loader process died ({lines[0]})"
    return UserError("data.workers", what, "it may have run out of memory: use fewer")


class Replaced:
    """Unreadable images that a run has replaced, at most `limit` over all its processes."""

    def __init__(self, limit: int, errors: Iterable[str] = ()):
        """errors: those of the run so far."""
        self.limit = limit
        self.errors = set(errors)

    def add(self, errors: Iterable[str]) -> None:
        """Warn about new errors and count them. Raises UserError if there are too many."""
        for error in sorted(set(errors) - self.errors):
            self.errors.add(error)
            count = f"{len(self.errors)} of at most {self.limit}"
            print(f"warning: {error}; replaced ({count})", file=sys.stderr)
        self.merge(())

    def merge(self, errors: Iterable[str]) -> None:
        """Count the errors that other processes have already reported."""
        self.errors.update(errors)
        if len(self.errors) > self.limit:
            what = f"{len(self.errors)} images cannot be read; the last: {max(self.errors)}"
            raise UserError("data.skip_unreadable", what, "repair the data, or raise the limit")
