"""Statistics over seeds, networks or data sets: means with their spread, and paired gains.

What a run has reached is its last evaluation. The best one is never used: chosen on the images that
it is measured on, it is too high, by more the more often a run evaluates.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")  # a seed, a network, a data set

LEVEL = 0.95  # of the intervals


class Spread(NamedTuple):
    """Mean, standard deviation (n - 1), 95 % t interval of the mean, and number of values.

    Of a single value only the mean and n = 1.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def standard_error(self) -> float | None:
        return None if self.sd is None else self.sd / self.n**0.5

    @property
    def t(self) -> float | None:
        """Student's t of a mean of zero; None without a spread."""
        return self.mean / self.standard_error if self.standard_error else None

    @property
    def p(self) -> float | None:
        """How probable a t this far from zero is, to both sides, if the mean is zero."""
        from scipy import stats

        return None if self.t is None else float(2 * stats.t.sf(abs(self.t), self.n - 1))

    def __str__(self) -> str:
        """Give `76.39 ± 0.24 (n = 5)`, or `76.39 (n = 1)`."""
        sd = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{sd} (n = {self.n})"


def last(curve: Sequence[tuple[float, float]]) -> float | None:
    """Return the last value of a curve of (epoch, value): what counts; None if it is empty."""
    return curve[-1][1] if curve else None


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of one or more values. Raises ValueError without any."""
    values = list(values)
    if not values:
        raise ValueError("no values")
    center = fmean(values)
    n = len(values)
    if n == 1:
        return Spread(center, None, None, None, 1)
    from scipy import stats

    sd = stdev(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / n**0.5
    return Spread(center, sd, center - half, center + half, n)


def paired(base: Mapping[Key, float], other: Mapping[Key, float]) -> dict[Key, float]:
    """Return `other` minus `base` for each key that both have, in the order of `base`."""
    return {key: other[key] - value for key, value in base.items() if key in other}


def better(gains: Iterable[float]) -> str:
    """Return `better in 33 of 36`; equal ones are not better."""
    gains = list(gains)
    return f"better in {sum(gain > 0 for gain in gains)} of {len(gains)}"


def interval(over: Spread, unit: str = "") -> str:
    """Return `95 % t interval -0.10 to +0.51, n = 5`, or why there is none."""
    if over.sd is None:
        return f"one {unit or 'value'}: no spread"
    return f"95 % t interval {over.low:+z.2f} to {over.high:+z.2f}, n = {over.n}"


def standard_errors(base: Spread, other: Spread) -> float | None:
    """Return by how many of its standard errors the unpaired difference of two means is not zero.

    For published means, which come with a standard deviation only (Welch's t). None without both
    standard deviations, or if both are zero.
    """
    errors = (base.standard_error, other.standard_error)
    if None in errors or not any(errors):
        return None
    return (other.mean - base.mean) / sum(error**2 for error in errors) ** 0.5
