"""Samples and batches: dictionaries of named tensors, with data errors beside them."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.stream import View

Batch = dict[str, Any]  # tensors by name, or lists of a tensor per sample


# what is sent to all processes of a job, or to a terminal's foreground group
TO_ALL = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


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
        worker_init_fn=_leave_signals_to_parent,
    )


def _leave_signals_to_parent(worker: int) -> None:
    """Make a loader process ignore signals that reach all processes: its parent decides.

    The SIGTERM by which torch ends a process that hangs comes from the parent, and still ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    theirs = set(TO_ALL)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none, and keeps torch's handler
        theirs.remove(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, theirs)


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay signals in the block; processes that it starts hold them until they are prepared."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    with _signals_held():
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
            raise error if replaced is None else replaced.refused(error)
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
            # clear of the progress bar
            tqdm.write(f"warning: {error}; replaced ({count})", file=sys.stderr)
        self.merge(())

    def refused(self, error: UserError) -> UserError:
        """The error for a training image in whose place there is no other."""
        where, what, instead = error.args
        skip = "data.skip_unreadable=N puts others in the place of up to N training images"
        return UserError(where, what, f"{instead}; {skip}" if instead else skip)

    def merge(self, errors: Iterable[str]) -> None:
        """Count the errors that other processes have already reported."""
        self.errors.update(errors)
        if len(self.errors) > self.limit:
            what = f"{len(self.errors)} images cannot be read; the last: {max(self.errors)}"
            raise UserError("data.skip_unreadable", what, "repair the data, or raise the limit")
