"""Where a fine-tuning starts: the weights of --checkpoint, and whether its classifier fits."""

from collections.abc import Sequence

from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.data.guards import other_classes
from deit_tract.models.weights import load_weights
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.train.records import read_export, read_fingerprint
from deit_tract.train.weights_source import MODEL, WeightsSource, find_weights


def load_start_weights(
    net: nn.Module, recipe: Recipe, source: str, classes: Sequence[str] = (), best: bool = False
) -> str:
    """Load what --checkpoint names into a model of `build_model`; returns the origin in words.

    source: a run's folder (its newest checkpoint, or `best`), a folder with model.safetensors, a
    .safetensors or .pth file, timm:NAME or torchvision:NAME; classes: names of what is to be
    learned. Raises UserError if there is nothing, if the weights are of another model, or if the
    classifier of a run is for another data set or other classes, be they as many, and no fresh one
    is asked for.
    """
    found = find_weights(source, best=best)
    if best and not found.best:
        raise UserError("--best", f"{source} leaves no choice of it", "leave out --best")
    if not recipe.model.new_head and found.kind != "file" and found.recipe is not None:
        _check_head(found, recipe, list(classes))
    load_weights(net, found.weights, recipe.model.new_head)
    if recipe.task == "detect":
        return source
    at = f"{source}, the best of step {found.step:,}" if best else source
    return f"{at}, {'a fresh classifier' if recipe.model.new_head else 'its classifier too'}"


def _check_head(source: WeightsSource, recipe: Recipe, classes: list[str]) -> None:
    """Compare the data sets of a run and of the recipe. Raises UserError if their classes differ.

    A file given by itself is not compared: that is how to take a classifier with other classes.
    """
    run = load_recipe(str(source.recipe))
    if recipe.task == "detect":
        if run.detect and run.detect.class_names != recipe.detect.class_names:
            what = "finds other classes than detect.class_names"
            raise UserError(source.given, what, "start from VGG-16's weights")
        return  # a classifier's last layer is left out
    old, new = run.data, recipe.data
    instead = f"set model.new_head=true, or give its {MODEL} if the classes are the same"
    if (old.name, old.classes) != (new.name, new.classes):
        theirs = f"the {old.classes} classes of {old.name}"
        what = f"its classifier is for {theirs}, not the {new.classes} of {new.name}"
        raise UserError(source.given, what, instead)
    theirs = _classes_of(source)
    differences = other_classes(theirs, classes) if classes and theirs else None
    if differences is not None:
        what = f"its classifier is for other classes (now {differences})"
        raise UserError(source.given, what, instead)


def _classes_of(source: WeightsSource) -> list[str] | None:
    """The names of the classes of a run or an export; None if it does not tell."""
    if source.run is not None:
        return (read_fingerprint(source.run) or {}).get("classes")
    if source.exported is not None:
        return read_export(source.exported).label_names
    return None
