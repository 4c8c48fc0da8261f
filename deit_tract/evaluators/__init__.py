"""What models are measured by: the evaluators of a recipe."""

from torch.utils.data import Dataset

from deit_tract.evaluators.classification import Classification
from deit_tract.evaluators.detection import Detection
from deit_tract.evaluators.evaluator import Evaluator
from deit_tract.recipe.settings.recipe import Recipe

EVALUATORS = {"classify": [Classification.of_recipe], "detect": [Detection.of_recipe]}


def build_evaluators(recipe: Recipe, images: Dataset) -> list[Evaluator]:
    """The recipe's evaluators on its validation images, the main one first."""
    return [make(recipe, images) for make in EVALUATORS[recipe.task]]
