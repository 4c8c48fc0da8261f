"""Stages meet their budget and never exceed it; what was spent is a function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_tract.common.errors import UserError
from deit_tract.schedule.curriculum import GMAC, by_budget, by_epochs, gmac_budget, share_budget

DEIT_TI = (387_385_344, 1_042_609_152, 2_507_366_400)  # 1/3, 2/3, all heads; 100, 144, 196 patches
DEIT_S = (1_370_400_000, 3_795_800_000, 9_197_800_000)
IMAGENET = 1251  # steps of 1,024 images


ROWS = [((11, 15, 17), 31.4), ((8, 24, 39), 63.23), ((22, 51, 127), 190.85)]


@pytest.mark.parametrize(("epochs", "gmac"), ROWS)
def test_published_rows(epochs, gmac):
    """Xia et al. (ICLR 2023), slides: epochs of three stages, and what they cost."""
    table = by_epochs(DEIT_TI, epochs, IMAGENET)
    assert table.spent(table.total) == pytest.approx(gmac, rel=5e-3)
    assert table.starts == [0, epochs[0] * IMAGENET, (epochs[0] + epochs[1]) * IMAGENET]


def test_one_ratio_gives_almost_the_published_stages():
    table = by_budget(DEIT_TI, gmac_budget(190.85), 2.4, IMAGENET)
    assert [round(steps / IMAGENET) for steps in table.steps] == [22, 53, 127]  # 22, 51, 127


def test_a_share_of_300_epochs():
    """Of DeiT-S in three stages, and of one stage, which is the full model for fewer epochs."""
    budget = share_budget(0.75, 300, DEIT_S[-1])
    table = by_budget(DEIT_S, budget, 2.4, IMAGENET)
    assert [round(steps / IMAGENET, 1) for steps in table.steps] == [32.6, 78.3, 187.8]
    assert table.total / IMAGENET == pytest.approx(298.7, abs=0.05)
    for share in (0.1, 0.3, 0.7, 1 / 3, 1.0, 2.0):
        one = by_budget(DEIT_S[-1:], share_budget(share, 300, DEIT_S[-1]), 2.4, IMAGENET)
        assert one.steps == (round(share * 300 * IMAGENET),)


@given(
    costs=st.lists(st.integers(1, 10**13), min_size=1, max_size=8).map(sorted),
    epochs=st.floats(1, 1000),
    ratio=st.floats(0.5, 5),
    steps_per_epoch=st.integers(1, 10**5),
)
def test_the_budget_is_spent_and_not_exceeded(costs, epochs, ratio, steps_per_epoch):
    budget = share_budget(1.0, epochs, costs[-1])
    try:
        table = by_budget(costs, budget, ratio, steps_per_epoch)
    except UserError:
        return
    pairs = list(zip(table.steps, costs, strict=True))
    left = budget * steps_per_epoch - sum(steps * cost for steps, cost in pairs)
    assert 0 <= left < costs[-1] + 1
    for now, following in zip(table.steps[:-1], table.steps[1:], strict=True):
        assert following > ratio * now - 2 - 1e-6 * following


def test_what_was_spent_is_a_function_of_the_step():
    table = by_epochs((GMAC, 2 * GMAC, 4 * GMAC), (0.2, 0.3, 0.5), steps_per_epoch=10)
    assert table.steps == (2, 3, 5) and table.total == 10
    assert [table.stage(step) for step in range(11)] == [0] * 2 + [1] * 3 + [2] * 6
    assert [step for step in range(11) if table.begins(step)] == [0, 2, 5]
    assert [table.spent(step) for step in (0, 1, 2, 5, 10)] == [0.0, 0.1, 0.2, 0.8, 2.8]
    assert [table.progress(step) for step in (0, 10)] == [0.0, 1.0]
    assert table.progress(5) == pytest.approx(0.8 / 2.8)


@pytest.mark.parametrize("epochs", [(0.01, 1, 1), (1, 1, 0.04)])
def test_a_stage_without_a_step_is_refused(epochs):
    with pytest.raises(
        UserError, match=r"curriculum: stage [13] of 3 has no step; raise the budget"
    ):
        by_epochs(DEIT_TI, epochs, steps_per_epoch=10)
