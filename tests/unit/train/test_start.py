"""Where fine-tuning starts: timm names, heads of other data sets, what is frozen."""

import pytest
import timm
import torch

from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model, freeze
from deit_tract.plan.plan import make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import start
from tests.helpers.start import PRETRAINED, fails, recipe


def test_a_timm_name(monkeypatch):
    """The hub is not asked here: timm makes a model of its own in its place."""
    create, asked = timm.create_model, []

    def offline(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    settings = load_recipe("transfer_cifar10_vit_s", ["data.image_size=96", "model.tract=0.1"])
    net = build_model(settings)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    start.load_start_weights(net, settings, "timm:deit3_small_patch16_224")
    assert asked[-1] == ("deit3_small_patch16_224", True)
    assert net.pos_embed.shape == (1, 36, 384), "196 patches made 36"
    kept = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    assert {"head.weight", "head.bias"} <= kept and not any(
        "attn.qkv.weight" in key for key in kept
    )


def test_a_timm_name_that_cannot_be_had_is_one_line():
    assert "timm has no model 'vit_no_such'" in fails("timm:vit_no_such")


def test_what_is_not_there_is_said(tmp_path):
    assert fails(tmp_path / "no").endswith("give a run's folder, a file of weights or timm:NAME")
    assert "holds neither a run nor weights" in fails(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "this run has no checkpoint yet" in fails(tmp_path)


def test_every_recipe_for_another_set_has_a_fresh_head():
    from deit_tract.recipe.catalogue import names

    for name in names():
        settings = load_recipe(name)
        if (
            settings.task == "classify"
            and settings.model.pretrained
            and settings.data.name != "imagenet"
        ):
            assert settings.model.new_head, name


def test_frozen_settings_that_cannot_be_are_one_line(tmp_path):
    with pytest.raises(
        UserError,
        match=r"TrAct trains the first layer, which model.train=attn freezes; set model.tract",
    ):
        recipe(*PRETRAINED, "model.train=attn")
    with pytest.raises(
        UserError, match=r"'head' would freeze a new model's layers; set model.pretrained=true"
    ):
        recipe("model.train=head", "model.tract=null")
    with pytest.raises(UserError, match="ResNet has no attention layers; use head or all"):
        freeze(timm.create_model("resnet10t", num_classes=2), "attn")


def test_the_plan_counts_what_is_trained(tmp_path):
    shown = {}
    for part in ("all", "attn", "head"):
        overrides = ["model.tract=null", *PRETRAINED, f"model.train={part}"]
        shown[part] = make_plan(recipe(*overrides), tmp_path / "run")
    assert shown["all"].cost.trainable == shown["all"].cost.parameters
    assert shown["head"].cost.trainable == 64 * 10 + 10 and "650 of them trained" in show_plan(
        shown["head"]
    )
    assert (
        shown["head"].memory["optimizer"]
        < shown["attn"].memory["optimizer"]
        < shown["all"].memory["optimizer"]
    )
    assert (
        shown["head"].cost.activations
        < shown["attn"].cost.activations
        <= shown["all"].cost.activations
    )
