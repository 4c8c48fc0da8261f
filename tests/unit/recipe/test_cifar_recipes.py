"""The CIFAR recipes against the paper's text."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from deit_tract.common.seeds import seed_generators
from deit_tract.data.stream import Stream
from deit_tract.data.transforms import augment
from deit_tract.recipe.catalogue import names
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results.runs import differing
from deit_tract.schedule.learning_rate import learning_rate

ALL = {name: load_recipe(name) for name in names() if name.startswith("cifar")}
LENGTHS = (100, 200, 400, 800)
RATES = {  # TrAct, Section 4.1
    "resnet18_sgd": (0.08, 0.08, 0.08, 0.08),
    "resnet18_adam": (1e-2, 1e-2, 1e-3, 1e-3),
    "vit": (1e-3, 10**-3.2, 10**-3.5, 10**-3.5),
}


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("classes", [10, 100])
def test_lengths_rates_and_batches_are_the_papers(kind, classes):
    for epochs, rate in zip(LENGTHS, RATES[kind], strict=True):
        recipe = ALL[f"cifar{classes}_{kind}_{epochs}ep"]
        assert recipe.optim.lr == pytest.approx(rate, rel=1e-5)
        assert (recipe.schedule.epochs, recipe.batch.size, recipe.batch.lanes) == (epochs, 128, 1)
        assert (recipe.data.name, recipe.data.classes, recipe.loss.name) == (
            f"cifar{classes}",
            classes,
            "ce",
        )
        assert recipe.loss.smoothing == (0.1 if kind == "vit" else 0)
        assert Stream(50_000, 1, 128).steps_per_epoch == 390


def test_the_arms_differ_in_tract_alone():
    arms = [name for name in ALL if name.endswith("_tract")]
    assert len(arms) == 8 + 16 + 2 + 2 and all(ALL[name].model.tract == 0.1 for name in arms)
    for name in arms:
        assert differing(ALL[name.removesuffix("_tract")], ALL[name]) == {"model.tract"}


def test_the_ablations_differ_in_what_they_are_about():
    for epochs in LENGTHS:
        vit, resnet = ALL[f"cifar10_vit_{epochs}ep"], ALL[f"cifar10_resnet18_adam_{epochs}ep_tract"]
        assert differing(resnet, ALL[f"cifar10_resnet18_adam_{epochs}ep_tract_sgdfirst"]) == {
            "optim.first_layer.lr", "optim.first_layer.momentum"}  # fmt: skip
        for name, kind in (("patchnorm", "input"), ("dualpatchnorm", "dual")):
            other = ALL[f"cifar10_vit_{epochs}ep_{name}"]
            assert other.model.args == {"patch_norm": kind}
            assert differing(vit, other) == {"model.args", "model.args.patch_norm"}
    for name in ("input01", "input255"):
        assert differing(ALL["cifar10_vit_200ep"], ALL[f"cifar10_vit_200ep_{name}"]) == {
            "data.mean",
            "data.std",
        }


@pytest.mark.parametrize(("name", "top"), [("input01", 1), ("input255", 255)])
def test_inputs_without_standardisation(name, top):
    recipe = ALL[f"cifar10_vit_200ep_{name}"]
    image = augment.eval_transform(recipe)(
        Image.fromarray(np.tile(np.arange(0, 256, 8, np.uint8)[:, None, None], (1, 32, 3)))
    )
    torch.testing.assert_close(image[1, :, 7], torch.arange(0, 256, 8) * top / 255)


def test_the_resnets_rate_is_a_cosine_to_zero_step_by_step():
    rate = learning_rate(ALL["cifar10_resnet18_sgd_100ep"], 390)
    theirs = [0.04 * (1 + math.cos(math.pi * step / 39_000)) for step in (0, 1, 19_500, 38_999)]
    assert [rate(step) for step in (0, 1, 19_500, 38_999)] == pytest.approx(theirs)


def test_autoaugment_is_drawn_from_the_views_seed():
    """Its policies for CIFAR-10, after crop and flip: other pixels than without, the same from the
    same seed.
    """
    plain, ours = (
        load_recipe("cifar10_vit_100ep", [f"augment.auto_augment={value}"])
        for value in ("null", "cifar10")
    )
    transforms = augment.train_transform(plain), augment.train_transform(ours)
    image, images = (
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)),
        [],
    )
    changed = 0
    for seed in range(40):
        for transform in (*transforms, transforms[1]):
            seed_generators(seed)
            images.append(transform(image))
        without, first, again = images[-3:]
        assert torch.equal(first, again)
        changed += not torch.equal(without, first)
    assert 25 <= changed < 40  # a policy leaves some images as they are
