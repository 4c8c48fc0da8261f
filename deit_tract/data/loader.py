"""Views of images as samples and batches; data errors are returned, not raised."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.stream import View


class Views(Dataset):
    """Images as transformed tensors, fetched by View; a mistake in the data comes back as a value (see `loader`).

    A sample is (transformed, label), and where the transform returns several things (the first, label, the others).
    """

    def __init__(self, images: Dataset, transform: Callable, replace: bool = False):
        """replace: put another image, which the view's seed picks, in the place of one that cannot be read."""
        self.images, self.transform, self.attempts = images, transform, 100 if replace else 1

    def __getitem__(self, view: View) -> tuple | UserError:
        return self.__getitems__([view])[0]

    def __getitems__(self, views: Sequence[View]) -> list[tuple | UserError]:
        """The samples of a batch in order; an image of which there are several views is read once."""
        places: dict[int, list[int]] = {}
        for place, view in enumerate(views):
            places.setdefault(view.index, []).append(place)
        samples: list = [None] * len(views)
        for index, same in places.items():
            found = self._read(index)
            for place in same:
                samples[place] = self._sample(views[place], found)
        return samples

    def _read(self, index: int) -> tuple | UserError:
        try:
            return self.images[index]
        except UserError as error:
            return error

    def _sample(self, view: View, found: tuple | UserError) -> tuple | UserError:
        errors = Notes()
        while isinstance(found, UserError):
            errors.append(found)
            if len(errors) == self.attempts:
                return errors[0]
            found = self._read(derive(view.seed, "replacement", len(errors) - 1) % len(self.images))
        image, label = found
        seed_generators(view.seed)
        first, *others = _as_tuple(self.transform(image))
        return (first, label, *others, errors) if errors else (first, label, *others)


def _as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


class Notes(list):
    """Mistakes in the data that were passed over, behind a sample or a batch."""


def loader(
    dataset: Dataset, batches, workers: int, pin_memory: bool, collate: Callable = default_collate
) -> DataLoader:
    """A DataLoader over lists of keys, in their order. A batch with a bad image is that image's UserError.

    An exception raised in a worker would reach the user as a traceback inside another one.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=partial(_collate, collate=collate),
        prefetch_factor=4 if workers else None,
    )


def _collate(samples: list, collate: Callable) -> list[torch.Tensor] | UserError:
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    if errors:
        return errors[0]
    notes = Notes(
        str(note) for sample in samples if isinstance(sample[-1], Notes) for note in sample[-1]
    )
    batch = collate(
        [sample[:-1] if isinstance(sample[-1], Notes) else sample for sample in samples]
    )
    return [*batch, notes] if notes else batch


LOST = (ConnectionError, EOFError)  # what taking a tensor from a process raises that is gone


def worker_died(error: Exception) -> UserError | None:
    """What to say if a loader's process has died; torch raises it wherever the main thread is at that moment."""
    if "DataLoader worker" not in str(error) and not isinstance(error, LOST):
        return None
    what = (
        f"a loader process died ({(str(error).strip().splitlines() or [type(error).__name__])[0]})"
    )
    return UserError("data.workers", what, "it may have run out of memory: use fewer")


def checked(batches, replaced: "Replaced | None" = None) -> Iterator[list[torch.Tensor]]:
    """The loader's batches, or its UserError raised in the process that asked; replaced images are counted."""
    batches = iter(batches)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, *LOST) as error:
            died = worker_died(error)
            if died is None:
                raise
            raise died from None
        if isinstance(batch, UserError):
            raise batch
        if isinstance(batch[-1], Notes):
            replaced.add(batch.pop())
        yield batch


class Replaced:
    """The unreadable images that were replaced in a run, at most `limit` different ones over all processes."""

    def __init__(self, limit: int, errors: Iterable[str] = ()):
        """errors: those of the run so far."""
        self.limit, self.errors = limit, set(errors)

    def add(self, errors: Iterable[str]) -> None:
        """Say and count what is new. Raises UserError where they become too many."""
        for error in sorted(set(errors) - self.errors):
            self.errors.add(error)
            print(
                f"warning: {error}; replaced ({len(self.errors)} of at most {self.limit})",
                file=sys.stderr,
            )
        self.merge(())

    def merge(self, errors: Iterable[str]) -> None:
        """Count those of the other processes too, which said them."""
        self.errors.update(errors)
        if len(self.errors) > self.limit:
            what = f"{len(self.errors)} images cannot be read; the last: {max(self.errors)}"
            raise UserError("data.skip_unreadable", what, "repair the data, or raise the limit")
