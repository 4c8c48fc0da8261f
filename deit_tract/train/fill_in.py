"""What a recipe leaves open as null, filled in before the model is built: by weights and data."""

from pathlib import Path
from typing import Any, NamedTuple

import timm

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets.load import count_classes
from deit_tract.models.names import no_such_model
from deit_tract.recipe.checks import check_recipe
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.train import checkpoint
from deit_tract.train.records import read_export
from deit_tract.train.weights_source import RECIPE, find_weights

GIVE = "set model.name=NAME, of timm"


class Known(NamedTuple):
    """What weights tell of their model and of the images that it has seen; None if they do not."""

    origin: str
    name: str | None = None
    args: dict[str, Any] = {}  # of timm.create_model
    mean: list[float] | None = None
    std: list[float] | None = None


def fill_in(recipe: Recipe, folder: Path, weights: str | None, need_data: bool = True) -> Recipe:
    """Put values in place of the nulls in model.name, data.mean, data.std and data.classes.

    The first three come from the run in `folder`, if there is one to resume, else from the weights
    of --checkpoint. The classes are always counted; unless `need_data` they stay null without
    data.dir.
    Raises UserError for what cannot be known, and UserErrors if the values do not fit the recipe.
    """
    values: dict[tuple[str, str], tuple[Any, str]] = {}
    if None in (recipe.model.name, recipe.data.mean, recipe.data.std):
        values = _by_weights(recipe, _known(folder, weights))
    if recipe.data.classes is None and (need_data or recipe.data.dir is not None):
        values["data", "classes"] = count_classes(recipe.data), f"counted in {recipe.data.dir}"
    if not values:
        return recipe
    sections = {"model": recipe.model, "data": recipe.data}
    for (section, key), (value, _) in values.items():
        sections[section] = sections[section].model_copy(update={key: value})
    filled = recipe.model_copy(update=sections)
    origins = {path: origin for path, (_, origin) in values.items()}
    filled._origins = recipe._origins | origins
    problems = [UserError(".".join(key), *texts) for key, *texts in check_recipe(filled)]
    if problems:
        raise UserErrors(problems)
    return filled


def _by_weights(recipe: Recipe, known: Known) -> dict[tuple[str, str], tuple[Any, str]]:
    """What the weights decide, each with its origin."""
    values: dict[tuple[str, str], tuple[Any, str]] = {}
    name = recipe.model.name
    if name is None:
        name = known.name
        if name is None:
            raise UserError("model.name", f"null, but {known.origin} does not tell it", GIVE)
        values["model", "name"] = name, known.origin
        if known.args:
            values["model", "args"] = known.args | recipe.model.args, known.origin
    if not timm.is_model(name):
        raise UserError("model.name", *no_such_model(name))
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    for key in ("mean", "std"):
        if getattr(recipe.data, key) is not None:
            continue
        own = getattr(known, key)
        value = own or (config and list(getattr(config, key)))
        if not value:
            what = f"null, but timm knows none for {name}"
            raise UserError(f"data.{key}", what, "give one value per channel")
        values["data", key] = value, known.origin if own else f"timm's of {name}"
    return values


def _known(folder: Path, weights: str | None) -> Known:
    """What the run in the folder has, else what the weights tell."""
    if (folder / RECIPE).is_file() and checkpoint.steps(folder / checkpoint.FOLDER):
        return _of_recipe(folder / RECIPE)
    if weights is None:
        return Known("a run without finetune.py --checkpoint RUN|FILE|timm:NAME")
    source = find_weights(weights)
    hub, _, name = weights.partition(":")
    if source.kind == "hub" and hub == "timm":
        return _of_hub(weights, name)
    if source.recipe is not None:
        return _of_recipe(source.recipe)
    if source.exported is not None:
        return _of_export(source.exported / "config.json")
    return Known(weights)


def _of_recipe(file: Path) -> Known:
    recipe = load_recipe(str(file))
    return Known(str(file), recipe.model.name, recipe.model.args, recipe.data.mean, recipe.data.std)


def _of_hub(weights: str, name: str) -> Known:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return Known(weights, name)
    return Known(weights, name, mean=list(config.mean), std=list(config.std))


def _of_export(file: Path) -> Known:
    config = read_export(file.parent)
    view = config.pretrained_cfg
    return Known(str(file), config.architecture, config.model_args, view.mean, view.std)
