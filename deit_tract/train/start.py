"""Where a fine-tuning starts: the weights of --checkpoint, and whether its classifier fits."""

from pathlib import Path

from torch import nn

from deit_tract.common.errors import UserError
from deit_tract.models.weights import load_weights
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.train import checkpoint

WEIGHTS = "model.safetensors"


def load_start_weights(net: nn.Module, recipe: Recipe, source: str) -> str:
    """Load what --checkpoint names into a model of `build_model`; returns the origin in words.

    source: a run's folder (its newest checkpoint), a folder with model.safetensors, a .safetensors
    or .pth file, timm:NAME or torchvision:NAME. Raises UserError if there is nothing, if the
    weights are of another model, or if a run's classifier is for another data set and no fresh one
    is asked for: the number of classes may be the same.
    """
    if not recipe.model.new_head:
        _check_head(source, recipe)
    load_weights(net, weights_of(source), recipe.model.new_head)
    if recipe.task == "detect":
        return source
    return f"{source}, {'a fresh classifier' if recipe.model.new_head else 'its classifier too'}"


def weights_of(source: str) -> str:
    """The file of weights that --checkpoint means, or a hub's NAME. UserError if there is none."""
    path = Path(source)
    if source.startswith(("timm:", "torchvision:")) or path.is_file():
        return source
    if not path.is_dir():
        raise UserError(
            source,
            "no such file or folder",
            "give a run's folder, a .safetensors or .pth file, or timm:NAME",
        )
    if (path / "checkpoints").is_dir():
        newest = checkpoint.newest(path / "checkpoints", tidy=False)
        if newest is None:
            raise UserError(source, "this run has no checkpoint yet")
        return str(newest / WEIGHTS)
    if not (path / WEIGHTS).is_file():
        raise UserError(
            source,
            f"holds neither checkpoints/ nor {WEIGHTS}",
            "give a run's folder or a file of weights",
        )
    return str(path / WEIGHTS)


def _check_head(source: str, recipe: Recipe) -> None:
    """Compare the data sets of a run and of the recipe; a file does not tell its own."""
    path = Path(source) / "recipe.yaml"
    if not path.is_file():
        return
    run = load_recipe(str(path))
    if recipe.task == "detect":
        if run.detect and run.detect.class_names != recipe.detect.class_names:
            what = "finds other classes than detect.class_names"
            raise UserError(source, what, "start from VGG-16's weights")
        return  # a classifier's last layer is left out
    old, new = run.data, recipe.data
    if (old.name, old.classes) != (new.name, new.classes):
        theirs = f"the {old.classes} classes of {old.name}"
        what = f"its classifier is for {theirs}, not the {new.classes} of {new.name}"
        instead = f"set model.new_head=true, or give its {WEIGHTS} where the classes are the same"
        raise UserError(source, what, instead)
