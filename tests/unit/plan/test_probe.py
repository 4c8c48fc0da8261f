"""What --plan accepts begins to train: its first step is tried on made images and on shapes."""

import pytest

from deit_tract.common.errors import UserErrors
from deit_tract.data.transforms import augment
from deit_tract.models.precision import resolve_precision
from deit_tract.plan import probe
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.detect import RECIPE, SMALL


def refused(recipe) -> list[str]:
    with pytest.raises(UserErrors) as error:
        probe.check_start(resolve_precision(recipe))
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["model.args.patch_size=9"], "data.image_size: vit_tiny_patch16_224 does not take 16"),
        (["model.args.img_size=16"], "data.image_size: vit_tiny_patch16_224 does not take 16"),
        (["model.args.global_pool=''"], "model.args: vit_tiny_patch16_224 gives (16, 16, 10)"),
        (["model.args.depth=1000"], "model.args: more than 10,000 layers"),
        (["model.args.embed_dim=65536", "model.args.depth=9"], "batch.size: a lane of 16 images"),
    ],
)
def test_a_model_that_cannot_take_the_first_step(monkeypatch, settings, line):
    monkeypatch.setattr(probe, "LAYERS", 300)
    line = line.replace("10,000", "300")
    assert refused(load_recipe("quickstart", settings))[0].startswith(line)


def test_the_key_because_of_which_an_image_fails(monkeypatch):
    def broken(degrees, *_, **__):
        raise ValueError(f"{degrees} degrees\nare too many")

    monkeypatch.setattr(augment.v2, "RandomAffine", broken)
    [line] = refused(load_recipe("quickstart", ["augment.flip=0.5"]))
    what = "a made image of 8 px fails (5.0 degrees are too many)"
    assert line == f"augment.affine: {what}; choose another value"


@pytest.mark.parametrize("pipeline", ["exact", "fast"])
def test_what_a_transform_leaves_for_the_batch_is_tried_too(pipeline):
    settings = ["augment.random_erase=1", f"data.pipeline={pipeline}"]
    probe.check_start(resolve_precision(load_recipe("quickstart", settings)))


def test_a_detector_computes_a_photo(monkeypatch):
    recipe = resolve_precision(load_recipe(RECIPE, [*SMALL, "detect.rpn_sample=8"]))
    probe.check_start(recipe)
    seen = []

    def broken(net, *_):
        seen.append(net.fg_bg_sampler.batch_size_per_image)
        if seen[-1] == 8:
            raise RuntimeError("no sample")

    monkeypatch.setattr("deit_tract.models.detector.Rpn.assign_targets_to_anchors", broken)
    monkeypatch.setattr(probe, "_culprit", lambda *_: "detect.rpn_sample")
    [line] = refused(recipe)
    assert line.startswith("detect.rpn_sample: a made image of 96 px fails (no sample)")
