"""Shared by the tests of plan."""

import pytest

from deit_tract.common.errors import UserErrors
from deit_tract.plan.plan import make_plan
from deit_tract.recipe.resolve import Recipe


def mistakes(recipe: Recipe, folder) -> list[str]:
    with pytest.raises(UserErrors) as error:
        make_plan(recipe, folder)
    return str(error.value).splitlines()
