"""A thousand broken recipes at the loader: valid, or a line for each mistake; none is run."""

import re

import pytest

from deit_tract.common.errors import UserError
from deit_tract.plan import scaling
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.fuzz import CASES, assert_lines, assert_mistakes, at_most, case, check


@pytest.mark.parametrize("first", range(100, CASES, 100))
def test_a_broken_recipe_is_its_users_mistake(first, tmp_path):
    assert_mistakes(range(first, first + 100), tmp_path)


def test_the_cases_are_as_varied_as_they_should_be(tmp_path):
    """Neither all refused nor all fine; what is refused is refused for many reasons."""
    reasons, valid = set(), 0
    for i in range(200):  # about one in fifteen is valid
        try:
            load_recipe(*case(i, tmp_path))
            valid += 1
        except UserError as error:
            reasons |= {
                re.sub(r"'[^']*'|\d+", "", line.partition(": ")[2])[:25]
                for line in str(error).splitlines()
            }
    assert valid >= 10 and len(reasons) >= 20, (valid, reasons)


def test_a_valid_one_can_be_planned_or_says_why_not(tmp_path):
    planned = 0
    for i in range(CASES, 2 * CASES):
        recipe = check(*case(i, tmp_path), tmp_path)
        if recipe is None:
            continue
        try:
            with at_most(60):
                assert show_plan(make_plan(recipe, tmp_path / "run"))
                gpus = min(3, recipe.batch.lanes)
                assert scaling.show_scaled(make_plan(recipe, tmp_path / "run", gpus), gpus)
        except UserError as error:
            assert_lines(error)
        except BaseException as error:
            text = explain(recipe)
            pytest.fail(f"case {i}: {type(error).__name__}: {str(error)[:2000]}\n{text}")
        planned += 1
        if planned == 8:
            return
    pytest.fail(f"{planned} of {CASES} cases are valid")
