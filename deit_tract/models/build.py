"""Models: timm's by name, with TrAct on the first layer and the recipe's drop path."""

import timm
from torch import nn

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.models.checkpointing import set_checkpointing
from deit_tract.models.detector import build_detector
from deit_tract.models.drop_path import set_drop_path
from deit_tract.models.names import no_such_model
from deit_tract.models.precision import set_channels_last
from deit_tract.models.weights import classifier_prefixes
from deit_tract.recipe.settings.recipe import Model, Recipe


def build_model(recipe: Recipe) -> nn.Module:
    """Build the recipe's model on the CPU, initialised from its seed.

    Raises UserError on names and arguments that timm does not know.
    """
    seed_generators(derive(recipe.seed, "init"))
    net = build_detector(recipe) if recipe.task == "detect" else _build_classifier(recipe)
    if recipe.model.tract is not None:
        _put_tract(net, recipe.model)
    freeze(net, recipe.model.train)
    if recipe.precision.channels_last:
        set_channels_last(net)
    return net


def _build_classifier(recipe: Recipe) -> nn.Module:
    model, data = recipe.model, recipe.data
    if model.name is None:
        what = "null, which given weights decide"
        raise UserError("model.name", what, "use finetune.py --checkpoint")
    if not timm.is_model(model.name):
        raise UserError("model.name", *no_such_model(model.name))
    size = {"img_size": data.image_size} if _has_fixed_size(model.name) else {}
    shape = {"num_classes": data.classes, "in_chans": data.channels}
    rising = model.drop_path_rule == "rising" and model.drop_path > 0
    rates = {"drop_path_rate": model.drop_path} if rising else {}
    try:
        net = timm.create_model(model.name, **shape, **(size | rates | model.args))
    except UserError:
        raise
    except Exception as error:  # whatever a model makes of arguments that it did not expect
        what = f"timm cannot build {model.name} ({type(error).__name__}: {error})"
        instead = "model.args: {} drops those of a base" if model.args else ""
        raise UserError("model.args", what, instead) from None
    if model.class_token_std is not None:
        if getattr(net, "cls_token", None) is None:
            what = f"{model.name} has no class token"
            raise UserError("model.class_token_std", what, "set it to null")
        nn.init.trunc_normal_(net.cls_token, std=model.class_token_std)
    set_drop_path(net, model.drop_path, model.drop_path_mode, model.drop_path_rule)
    if model.checkpointing:
        set_checkpointing(net)
    return net


def _put_tract(net: nn.Module, model: Model) -> None:
    """Set net.patch_embed.proj = TrAct(net.patch_embed.proj), or another model's first layer."""
    try:
        tract.apply_to_first_layer(net, model.tract, gram=model.tract_gram)
    except (TypeError, ValueError) as error:
        instead = "set it to null, or choose another model"
        raise UserError("model.tract", str(error), instead) from None


def freeze(net: nn.Module, train: str) -> None:
    """Leave trainable what model.train names: "all", "head" (the classifier), or "attn".

    "attn" is the attention layers' weights and biases, the position embedding and the classifier,
    not the norms, MLPs, LayerScale, class token and patch embedding: Touvron et al. 2022, "Three
    things everyone should know about Vision Transformers", and DeiT's --attn-only. Raises UserError
    if a model has no such layers.
    """
    if train == "all":
        return
    names = [name for name, _ in net.named_parameters()]
    kept = [name for name in names if name.startswith(classifier_prefixes(net))]
    if train == "attn":
        attention = [name for name in names if ".attn." in name]
        if not attention:
            what = f"{type(net).__name__} has no attention layers"
            raise UserError("model.train", what, "use head or all")
        kept += [*attention, "pos_embed"]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in kept)


def _has_fixed_size(name: str) -> bool:
    """Tell whether a timm model is built for one image size, which `img_size` then sets."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)
