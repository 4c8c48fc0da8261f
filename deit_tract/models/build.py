"""Models: timm's by name, TrAct on the first layer, drop path as the recipe draws it, weights loaded strictly."""

import timm
from torch import nn

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.models import detector
from deit_tract.models.drop_path import set_drop_path
from deit_tract.recipe.settings.recipe import Model, Recipe


def build_model(recipe: Recipe) -> nn.Module:
    """The recipe's model on the CPU, initialised from its seed. Raises UserError on what timm does not know."""
    if recipe.task == "detect":
        return detector.build_detector(recipe)
    seed_generators(derive(recipe.seed, "init"))
    model, data = recipe.model, recipe.data
    if not timm.is_model(model.name):
        near = timm.list_models(f"*{model.name.split('_')[0]}*")[:3]
        raise UserError(
            "model.name",
            f"timm has no model '{model.name}'",
            f"try {', '.join(near)}" if near else "",
        )
    size = {"img_size": data.image_size} if _has_fixed_size(model.name) else {}
    try:
        net = timm.create_model(
            model.name, num_classes=data.classes, in_chans=data.channels, **(size | model.args)
        )
    except Exception as error:  # whatever a model makes of arguments that it did not expect
        what = f"timm cannot build {model.name} ({type(error).__name__}: {error})"
        raise UserError("model.args", what) from None
    if model.class_token_std is not None:
        if getattr(net, "cls_token", None) is None:
            raise UserError(
                "model.class_token_std", f"{model.name} has no class token", "set it to null"
            )
        nn.init.trunc_normal_(net.cls_token, std=model.class_token_std)
    set_drop_path(net, model.drop_path, model.drop_path_mode)
    if model.tract is not None:
        _put_tract(net, model)
    freeze(net, model.train)
    return net


def _put_tract(net: nn.Module, model: Model) -> None:
    """net.patch_embed.proj = TrAct(net.patch_embed.proj), or whatever layer sees the images in another model."""
    try:
        tract.apply_to_first_layer(net, model.tract, gram=model.tract_gram)
    except (TypeError, ValueError) as error:
        raise UserError(
            "model.tract", str(error), "set it to null, or choose another model"
        ) from None


def freeze(net: nn.Module, train: str) -> None:
    """Leave trainable what model.train says: "all", "head" (the classifier), or "attn".

    "attn" is the attention layers' weights and biases, the position embedding and the classifier, not the norms, MLPs,
    LayerScale, class token and patch embedding: Touvron et al. 2022, "Three things everyone should know about Vision
    Transformers", and DeiT's --attn-only. Raises UserError where a model has no such layers.
    """
    if train == "all":
        return
    names = [name for name, _ in net.named_parameters()]
    kept = [name for name in names if name.startswith(f"{net.pretrained_cfg['classifier']}.")]
    if train == "attn":
        attention = [name for name in names if ".attn." in name]
        if not attention:
            raise UserError(
                "model.train", f"{type(net).__name__} has no attention layers", "use head or all"
            )
        kept += [*attention, "pos_embed"]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in kept)


def _has_fixed_size(name: str) -> bool:
    """Whether a timm model is built for one image size, which `img_size` then sets."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)
