"""What a model learns to do: the task of a recipe."""

from torch.utils.data import Dataset

from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.tasks.classify import Classify
from deit_tract.tasks.detect import Detect
from deit_tract.tasks.task import Task

TASKS = {"classify": Classify, "detect": Detect}


def build_task(recipe: Recipe, images: Dataset) -> Task:
    """The recipe's task on its training images."""
    return TASKS[recipe.task](recipe, images)
