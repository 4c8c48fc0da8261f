"""What a model learns to do: the task of a recipe."""

from deit_tract.recipe.settings.recipe import Recipe


def build(recipe: Recipe):
    """The recipe's task: its data, model, loss and metrics."""
    if recipe.task == "detect":
        from deit_tract.tasks.detect import Detect

        return Detect(recipe)
    from deit_tract.tasks.classify import Classify

    return Classify(recipe)
