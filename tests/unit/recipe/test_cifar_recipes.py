"""The CIFAR recipes against the paper's text."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from deit_tract.common.seeds import seed_generators
from deit_tract.data.stream import Stream
from deit_tract.data.transforms import augment
from deit_tract.recipe import published
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
    assert len(arms) == 8 + 16 + 2 + 4 and all(ALL[name].model.tract == 0.1 for name in arms)
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


# ---- Table 1: 36 networks ------------------------------------------------------------------------

TABLE = {name: load_recipe(name) for name in names() if name.startswith("table1_")}
RATES_OF_EPOCHS = {  # those of pytorch-cifar100's own scheduler after its warm-up epoch
    "200ep": [0.1] * 58 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 41,
    "133ep": [0.1] * 38 + [0.02] * 40 + [0.004] * 27 + [0.0008] * 27,
}


@pytest.mark.parametrize("run", RATES_OF_EPOCHS)
def test_the_rate_of_each_epoch_is_the_references(run):
    """Its warm-up begins at 0; its first rate ends an epoch before the text's 60."""
    rate = learning_rate(TABLE[f"table1_vgg16_{run}"], 390)
    assert [rate(step) for step in (0, 39, 195)] == pytest.approx([0, 0.01, 0.05])
    wanted = RATES_OF_EPOCHS[run]
    for epoch, value in enumerate(wanted, 1):
        assert [rate(390 * epoch), rate(390 * epoch + 389)] == pytest.approx([value, value])
    assert TABLE[f"table1_vgg16_{run}"].schedule.epochs == 1 + len(wanted)


def test_the_36_networks_differ_in_their_name_and_each_has_the_papers_numbers():
    assert len(TABLE) == 36 * 4
    expected = [[], [], []]
    for name, recipe in TABLE.items():
        net, run, *tract = name.removeprefix("table1_").split("_")
        assert recipe.model.args == {"net": net} and recipe.model.tract == (0.1 if tract else None)
        apart = {"model.args", "model.args.net", "model.tract"}
        assert differing(TABLE[f"table1_vgg16_{run}"], recipe) <= apart
        if run == "200ep" or tract:
            expected[2 if run == "133ep" else len(tract)].append(recipe.expected)
        else:
            assert recipe.expected is None
    average = published.read()["cifar100"]["average"]
    means = [sum(column) / 36 for column in expected]
    assert means == pytest.approx([average[0], average[4], average[8]], abs=0.0055)


# ---- ImageNet ResNets ----------------------------------------------------------------------------


def test_the_imagenet_resnets_are_the_papers():
    """TrAct, Section 4.3: 0.141 for 30 epochs, else 0.1; a tenth of it after 1/3 and 2/3."""
    for depth in (18, 34, 50):
        for epochs, peak in ((30, 0.141), (60, 0.1), (90, 0.1)):
            plain, ours = (load_recipe(f"resnet{depth}_{epochs}ep{arm}") for arm in ("", "_tract"))
            assert differing(plain, ours) == {"model.tract"} and ours.model.tract == 0.1
            rate = learning_rate(plain, 5004)
            third = 5004 * epochs // 3
            steps = (0, third - 1, third, 2 * third - 1, 2 * third, 3 * third - 1)
            factors = (1, 1, 0.1, 0.1, 0.01, 0.01)
            assert [rate(step) / peak for step in steps] == pytest.approx(factors)
            assert (plain.batch.size, plain.batch.lanes, plain.optim.weight_decay) == (256, 1, 1e-4)
