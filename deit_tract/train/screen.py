"""What a person sees of a run: lines on stdout, and on a terminal a progress bar below them."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

# s after the start, when a line comes if no log line has come yet; leaves time for a slow step
FIRST_LINE = 5.0
BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def write(line: str) -> None:
    """Print a line clear of the bars; with date and time if stdout is not a terminal."""
    if not sys.stdout.isatty():
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"
    tqdm.write(line)
    sys.stdout.flush()


class Screen:
    """The lines and bars of process 0. Nothing here reads the device, but for the first line."""

    def __init__(self, shown: bool, start: int, total: int, batch_size: int):
        """From step `start` of `total`; nothing is printed unless `shown`."""
        self.shown = shown
        self.start = start
        self.total = total
        self.batch_size = batch_size
        self._began = time.monotonic()
        self._waiting = True  # for the first line with numbers
        self._bars = shown and sys.stderr.isatty()
        self._bar = None

    def begin(self, lines: Iterable[str]) -> None:
        """Print the first lines, then the bar: from now on steps are taken."""
        for line in lines:
            self.say(line)
        self._began = time.monotonic()
        if self._bars:
            look = {"bar_format": BAR, "dynamic_ncols": True}
            self._bar = tqdm(total=self.total, initial=self.start, **look)

    def say(self, line: str) -> None:
        """Print a line."""
        if self.shown:
            write(line)

    def step(self, step: int, loss: Callable[[], float | None]) -> None:
        """Move the bar. The first numbers come early, whatever log.every_steps is.

        loss: of the last step on this process; called once at most.
        """
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        seconds = time.monotonic() - self._began
        if self._waiting and seconds > FIRST_LINE:
            rate = (step - self.start) * self.batch_size / seconds
            value = loss()
            losses = [] if value is None else [f"loss {value:.4f}"]
            self.progress(step, [*losses, f"{rate:.0f} img/s so far"], rate)

    def progress(self, step: int, parts: Sequence[str], rate: float) -> None:
        """Show the numbers of a log line: in the bar, or as a line with the time left."""
        self._waiting = False
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(", ".join(parts))
            return
        left = timedelta(seconds=round((self.total - step) * self.batch_size / rate))
        self.say(", ".join((f"step {step}/{self.total}", *parts, f"{left} left")))

    @contextmanager
    def evaluating(self, images: int) -> Iterator[Callable[[int], object]]:
        """A bar over an evaluation; yields what is called with the number of images done."""
        if not self._bars:
            yield lambda done: None
            return
        look = {"bar_format": f"evaluating {BAR}", "dynamic_ncols": True, "leave": False}
        with tqdm(total=images, **look) as bar:
            yield bar.update

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
