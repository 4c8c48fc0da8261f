"""The DeiT-III recipes against the reference, value by value: what today's libraries would silently
do otherwise.

docs/fidelity.md is the table of these; the stream, mixing and transforms are in the tests of their
modules.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import seed_generators
from deit_tract.data.sets.load import load_splits
from deit_tract.data.transforms import augment, mix
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath
from deit_tract.models.weights import load_weights
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.schedule.durations import total_steps
from deit_tract.schedule.learning_rate import learning_rate
from deit_tract.tasks import build_task
from deit_tract.train import loop

PRETRAINING = ["vit_s_400ep", "vit_s_800ep", "vit_b_400ep", "vit_b_800ep"]
FINE_TUNING = ["vit_s_ft224", "vit_b_ft224", "vit_s_ft224_20ep", "vit_b_ft224_20ep"]


def small(name: str, *more: str) -> Recipe:
    """A recipe with one block, which is enough for what is asked here."""
    return load_recipe(name, ["model.args.depth=1", *more])


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_s_800ep", 22_059_496), ("vit_b_400ep", 86_545_384)]
)
def test_parameters(name, parameters):
    assert sum(p.numel() for p in build_model(load_recipe(name)).parameters()) == parameters


COMMANDS = {  # README_revenge.md: --batch, --node x --gpu
    "vit_s_800ep": (256, 1 * 8),
    "vit_b_800ep": (256, 1 * 8),
    "vit_b_ft224_20ep": (64, 1 * 8),
    "vit_s_ft224_lamb": (128, 2 * 8),
    "vit_b_ft224_lamb": (64, 4 * 8),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_lanes_are_the_gpus_of_the_published_command(name):
    batch = load_recipe(name).batch
    assert (batch.lane_size, batch.lanes) == COMMANDS[name]


@pytest.mark.parametrize(
    ("name", "lr", "decay", "drop_path", "epochs", "size"),
    [
        ("vit_s_800ep", 4e-3, 0.05, 0.05, 800, 224),
        ("vit_s_400ep", 4e-3, 0.03, 0.0, 400, 224),
        ("vit_b_800ep", 3e-3, 0.05, 0.2, 800, 192),
        ("vit_b_400ep", 3e-3, 0.03, 0.1, 400, 192),
        ("vit_s_400ep_hp800", 4e-3, 0.05, 0.05, 400, 224),
        ("vit_b_400ep_hp800", 3e-3, 0.05, 0.2, 400, 192),
    ],
)
def test_pretraining_values(name, lr, decay, drop_path, epochs, size):
    recipe = load_recipe(name)
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.model.drop_path) == (
        lr,
        decay,
        drop_path,
    )
    assert (recipe.schedule.epochs, recipe.data.image_size, recipe.batch.size) == (
        epochs,
        size,
        2048,
    )
    assert (recipe.batch.lane_size, recipe.augment.repeats, recipe.evaluate.crop) == (256, 3, 1.0)
    assert (recipe.optim.name, recipe.optim.eps, recipe.optim.clip_grad) == ("lamb", 1e-8, 1.0)


@pytest.mark.parametrize("name", [*PRETRAINING, *FINE_TUNING])
def test_a_tract_recipe_differs_in_lambda_alone(name):
    if name.endswith("_20ep"):
        return
    lam = {"vit_s_800ep": 0.2, "vit_b_800ep": 0.2}.get(name, 0.1)
    assert differences(load_recipe(name), load_recipe(f"{name}_tract")) == [
        f"model.tract: null -> {lam}"
    ]


@pytest.mark.parametrize("name", ["vit_s_800ep_tract", "vit_b_800ep"])
def test_start_values(name):
    model = build_model(load_recipe(name))
    state = model.state_dict()
    gammas = torch.cat([value for key, value in state.items() if key.endswith("gamma")])
    assert len(gammas) == 24 * model.embed_dim and (gammas == torch.tensor(1e-4)).all()
    for key in ("cls_token", "pos_embed", "blocks.3.mlp.fc1.weight", "head.weight"):
        assert 0.018 < state[key].std() < 0.022, key
    assert all(
        (value == 0).all()
        for key, value in state.items()
        if key.endswith("bias") and "patch" not in key
    )
    bound = 1 / math.sqrt(3 * 16 * 16)  # torch's kaiming-uniform with a = sqrt(5)
    weight = state["patch_embed.proj.weight"]
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    assert state["pos_embed"].shape[1] == (model.patch_embed.grid_size[0]) ** 2, (
        "no slot for the class token"
    )
    assert model.norm.eps == 1e-6


@pytest.mark.parametrize(
    ("name", "rate"), [("vit_b_800ep", 0.2), ("vit_s_800ep", 0.05), ("vit_b_ft224", 0.2)]
)
def test_drop_path_is_constant_in_depth(name, rate):
    layers = [
        layer for layer in build_model(load_recipe(name)).modules() if isinstance(layer, DropPath)
    ]
    assert len(layers) == 24 and {layer.rate for layer in layers} == {rate}


TABLE = {
    "vit_s_800ep": {
        0: 1e-6,
        1: 1e-6,
        2: 8.008e-4,
        3: 1.6006e-3,
        4: 2.4004e-3,
        5: 3.2002e-3,
        6: 3.9996e-3,
        100: 3.8511e-3,
        400: 2.0128e-3,
        600: 5.9987e-4,
        799: 1.0062e-5,
    },
    "vit_b_400ep": {
        0: 1e-6,
        1: 1e-6,
        2: 6.008e-4,
        6: 2.9988e-3,
        200: 1.5167e-3,
        300: 4.5621e-4,
        399: 1.0184e-5,
    },
    "vit_b_ft224_20ep": {0: 1e-6, 1: 1e-6, 2: 2.8e-6, 5: 8.2e-6, 6: 1e-5, 12: 1e-5, 19: 1e-5},
}


@pytest.mark.parametrize("name", TABLE)
def test_learning_rates_are_the_references_lag_included(name):
    recipe, per_epoch = load_recipe(name), 625
    lr = learning_rate(recipe, per_epoch)
    for epoch, expected in TABLE[name].items():
        rates = {
            lr(step)
            for step in (epoch * per_epoch, epoch * per_epoch + 1, (epoch + 1) * per_epoch - 1)
        }
        assert len(rates) == 1 and rates.pop() == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("name", ["vit_s_400ep", "vit_b_800ep", "vit_b_ft224_20ep"])
def test_learning_rates_are_those_of_timms_scheduler_stepped_as_the_reference_does(name):
    from timm.scheduler import CosineLRScheduler

    recipe = load_recipe(name)
    epochs, lr = int(recipe.schedule.epochs), learning_rate(recipe, 7)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.optim.lr)
    scheduler = CosineLRScheduler(optimizer, epochs, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=5)
    for epoch in range(epochs):
        assert lr(7 * epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        scheduler.step(epoch)


def test_an_epoch_of_imagenet_is_625_steps_and_of_fine_tuning_2502():
    for name, steps in (("vit_s_800ep", 625), ("vit_b_ft224", 2502)):
        batch, augments = load_recipe(name).batch, load_recipe(name).augment
        stream = loop.Stream(1_281_167, batch.lanes, batch.lane_size, augments.repeats)
        assert stream.steps_per_epoch == steps
    assert total_steps(load_recipe("vit_s_800ep").schedule, 625) == 500_000


def test_pretraining_targets_are_zeros_and_ones_with_two_positives_at_most():
    recipe = small("vit_s_800ep", "data.name=synthetic", "data.image_size=32", "batch.size=16")
    task = build_task(recipe, load_splits(recipe.data, recipe.detect).train)
    task.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1000))
    seen = []
    criterion = F.binary_cross_entropy_with_logits
    task.criterion = lambda logits, targets: (
        seen.append(targets.gt(0)) or criterion(logits, targets.gt(0).float())
    )
    for seed in range(40):
        batch = {"image": torch.randn(16, 3, 32, 32), "label": torch.arange(16)}
        task.loss(task.model, [batch], [seed])
    positives = torch.cat(seen).sum(1)
    assert positives.max() == 2 and (positives == 2).float().mean() > 0.9, "every lane is mixed"


def test_pretraining_loss_starts_at_that_of_bce_over_1000_classes():
    recipe = small("vit_s_800ep_tract", "data.name=synthetic", "batch.size=16")
    task = build_task(recipe, load_splits(recipe.data, recipe.detect).train)
    task.model.train()
    batch = {"image": torch.randn(4, 3, 224, 224), "label": torch.arange(4)}
    loss = task.loss(task.model, [batch], [0])["loss"].item()
    assert loss == pytest.approx(math.log(2), abs=0.03)


def test_lanes_draw_different_mixes():
    recipe = load_recipe("vit_s_800ep")
    stream = loop.Stream(4096, 8, 256, 3)
    draws = {mix.draw(recipe.mix, 224, 224, stream.lane_seed(0, lane)) for lane in range(8)}
    assert len(draws) == 8


def test_transforms_of_pretraining_fine_tuning_and_the_21k_style():
    def names(name):
        return [
            type(step).__name__ for step in augment.train_transform(load_recipe(name)).transforms
        ]

    assert names("vit_s_800ep") == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandomChoice",
        "ColorJitter",
        "Normalize",
    ]
    assert names("vit_b_ft224") == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandAugment",
        "Normalize",
    ]
    assert names("vit_b_ft224_lamb")[:5] == [
        "Resize",
        "RandomCrop",
        "RandomHorizontalFlip",
        "RandomChoice",
        "ColorJitter",
    ]
    for name in ("vit_s_800ep", "vit_b_ft224"):
        assert (
            augment.train_transform(load_recipe(name)).transforms[0].interpolation.value
            == "bicubic"
        )
        resize = augment.eval_transform(load_recipe(name)).transforms[0]
        assert resize.interpolation.value == "bicubic" and resize.size == [
            load_recipe(name).data.image_size
        ]


def test_randaugment_never_fails_and_blackens_where_posterize_keeps_no_bit():
    """5,000 images, of which about five ask posterize for 0 bits; Pillow 13 raises there."""
    transform = augment.rand_augment("rand-m9-mstd0.5-inc1", load_recipe("vit_b_ft224").data)
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(1, 256, (16, 16, 3), dtype=np.uint8))
    for seed in range(5_000):
        seed_generators(seed)
        assert transform(image).size == (16, 16)
    assert not np.array(augment._posterize(image, 0)).any()
    assert (np.array(augment._posterize(image, 3)) == (np.array(image) & 0b11100000)).all()


def test_randaugment_is_timms_pipeline():
    from timm.data import create_transform

    recipe = load_recipe("vit_b_ft224")
    policy = recipe.augment.rand_augment
    theirs = create_transform(
        224, is_training=True, auto_augment=policy, color_jitter=0.3, interpolation="bicubic"
    )
    [reference] = [step for step in theirs.transforms if type(step).__name__ == "RandAugment"]
    ours = augment.rand_augment(policy, recipe.data)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    compared = 0
    for seed in range(300):
        seed_generators(seed)
        out = ours(image)
        seed_generators(seed)
        try:
            expected = reference(image)
        except ValueError:  # posterize to 0 bits on Pillow 13
            continue
        assert (np.array(out) == np.array(expected)).all()
        compared += 1
    assert compared > 290


def test_the_21k_crop_reflects_four_pixels():
    recipe = load_recipe(
        "vit_b_ft224_lamb", ["augment.three_augment=false", "augment.color_jitter=0"]
    )
    resize, crop = augment.train_transform(recipe).transforms[:2]
    assert (resize.size, crop.padding, crop.padding_mode) == ([224], [4, 4, 4, 4], "reflect")
    assert augment.train_transform(recipe)(Image.new("RGB", (300, 260))).shape == (3, 224, 224)


def test_position_embedding_is_resized_bicubically_without_antialiasing(tmp_path):
    pretrained = build_model(small("vit_b_800ep"))
    save_file(pretrained.state_dict(), tmp_path / "b192.safetensors")
    model = build_model(small("vit_b_ft224"))
    load_weights(model, str(tmp_path / "b192.safetensors"))
    table = pretrained.pos_embed.detach().reshape(1, 12, 12, 768).permute(0, 3, 1, 2)
    expected = F.interpolate(table, size=(14, 14), mode="bicubic", align_corners=False)
    assert torch.equal(model.pos_embed.detach(), expected.permute(0, 2, 3, 1).flatten(1, 2))
    smooth = F.interpolate(
        table, size=(14, 14), mode="bicubic", align_corners=False, antialias=True
    )
    assert not torch.allclose(expected, smooth, atol=1e-4), "the two do differ"


def test_a_fresh_head_must_be_asked_for(tmp_path):
    source = build_model(small("vit_s_800ep", "data.classes=10", "data.name=synthetic"))
    save_file(source.state_dict(), tmp_path / "ten.safetensors")
    with pytest.raises(
        UserError, match=r"other shapes for head.bias, head.weight; set model.new_head=true"
    ):
        load_weights(build_model(small("vit_s_ft224")), str(tmp_path / "ten.safetensors"))
    model = build_model(small("vit_s_ft224", "model.new_head=true"))
    before = model.head.weight.clone()
    load_weights(model, str(tmp_path / "ten.safetensors"), new_head=True)
    assert torch.equal(model.head.weight, before) and torch.equal(model.cls_token, source.cls_token)


def test_a_fine_tuning_recipe_does_not_start_from_scratch():
    assert all(load_recipe(name).model.pretrained for name in FINE_TUNING)
    assert not any(load_recipe(name).model.pretrained for name in PRETRAINING)
