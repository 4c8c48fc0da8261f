"""Statistics over seeds: by hand, against scipy, and the paper's own table."""

import pytest
from scipy import stats

from deit_tract.recipe import published
from deit_tract.results import statistics
from deit_tract.results.statistics import Spread, better, paired, spread


def test_spread_agrees_with_scipy():
    values = [0.31, -0.12, 0.55, 0.20, 0.08]
    over = spread(values)
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(0.95)
    assert (over.low, over.high) == pytest.approx((interval.low, interval.high))
    assert (over.t, over.p) == pytest.approx((test.statistic, test.pvalue))
    assert over.sd == pytest.approx(stats.tstd(values)) and over.mean == pytest.approx(0.204)
    assert over.standard_error == pytest.approx(stats.sem(values)) and over.n == 5
    assert str(over) == "0.20 ± 0.25 (n = 5)"


def test_by_hand():
    """1, 2, 6: mean 3, sd 2.646; t(0.975, 2) = 4.303, so 3 -+ 6.572."""
    over = spread([1.0, 2.0, 6.0])
    assert (over.mean, over.n) == (3.0, 3) and over.sd == pytest.approx(7**0.5)
    assert (over.low, over.high) == pytest.approx((3 - 6.572, 3 + 6.572), abs=1e-3)
    assert statistics.interval(over) == "95 % t interval -3.57 to +9.57, n = 3"
    assert spread([1.5]) == Spread(1.5, None, None, None, 1)
    assert spread([1.5]).t is spread([1.5]).p is spread([2.0, 2.0]).t is None
    assert statistics.interval(spread([1.5]), "seed") == "one seed: no spread"
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_pairs_are_those_that_both_have():
    gains = paired({3: 60.0, 1: 61.0, 7: 50.0}, {1: 63.0, 3: 60.0, 9: 99.0})
    assert gains == {3: 0.0, 1: 2.0} and list(gains) == [3, 1]
    assert better(gains.values()) == "better in 1 of 2" and better([]) == "better in 0 of 0"


def test_the_last_value_counts_not_the_best():
    assert statistics.last([(1.0, 50.0), (2.0, 70.0), (3.0, 60.0)]) == 60.0
    assert statistics.last([]) is None


def table(arm: str, column: str) -> dict[str, float]:
    """A column of the paper's Tables 6 and 7 by network."""
    rows = {key: entry for key, entry in published.entries().items() if key.startswith("cifar100/")}
    return {key: entry["results"][arm][column] for key, entry in rows.items()}


@pytest.mark.parametrize(
    ("arm", "column", "mean", "low", "high", "count"),
    [
        ("200 epochs, lambda 0.1", "top1", 0.487, 0.356, 0.618, 33),
        ("200 epochs, lambda 0.1", "top5", 0.229, 0.167, 0.292, 34),
        ("133 epochs, lambda 0.1", "top1", 0.039, -0.172, 0.249, None),
        ("133 epochs, lambda 0.1", "top5", 0.151, 0.056, 0.246, None),
    ],
)
def test_the_papers_36_networks(arm, column, mean, low, high, count):
    gains = paired(table("200 epochs", column), table(arm, column))
    over = spread(gains.values())
    assert over.n == 36
    assert (over.mean, over.low, over.high) == pytest.approx((mean, low, high), abs=6e-4)
    if count:
        assert better(gains.values()) == f"better in {count} of 36"
    if mean == 0.487:
        assert over.t == pytest.approx(7.56, abs=0.01) and over.p == pytest.approx(7e-9, rel=0.1)
    if mean == 0.039:
        assert over.p == pytest.approx(0.71, abs=0.01)


def test_the_papers_standard_deviations():
    """Of five seeds each: 22 of 36 gains in top-1 exceed 2.3 standard errors, none backwards."""

    def arms(arm: str) -> list[Spread]:
        pairs = zip(table(arm, "top1").values(), table(arm, "top1_sd").values(), strict=True)
        return [Spread(mean, sd, None, None, 5) for mean, sd in pairs]

    plain, ours = arms("200 epochs"), arms("200 epochs, lambda 0.1")
    errors = [statistics.standard_errors(*pair) for pair in zip(plain, ours, strict=True)]
    assert sum(error > 2.3 for error in errors) == 22 and min(errors) > -2.3
    assert statistics.standard_errors(spread([1.0]), spread([1.0, 2.0])) is None
