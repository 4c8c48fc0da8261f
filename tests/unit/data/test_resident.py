"""Images held on the device: the pixels of the ordinary path to the bit, whatever decodes and draws
them.
"""

import numpy as np
import pytest
import torch

from deit_tract.common.errors import UserError
from deit_tract.data import resident
from deit_tract.data.feed import Source, make_feed
from deit_tract.data.sets.load import load_splits
from deit_tract.data.stream import Once, Stream, View
from deit_tract.data.transforms import augment
from deit_tract.recipe.describe import differences
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Augment
from tests.helpers.images import noise

RECIPE = "cifar10_cnn_8ep_sgd"
CPU = torch.device("cpu")


def both(*overrides: str, workers: int = 0, device: torch.device = CPU) -> tuple[list, list]:
    """Three training batches of a recipe on made images: resident, and by way of PIL."""
    recipe = load_recipe(RECIPE, ["data.name=synthetic", f"data.workers={workers}", *overrides])
    images = load_splits(recipe.data).train
    stream = Stream(len(images), lanes=2, lane_size=32, seed=7)
    steps = (0, 95)  # 95: the third epoch of 2,048 images
    held = resident.Resident(images, recipe, recipe.augment)
    assert len(held) == len(images)
    usual = Source(images, augment.train_transform(recipe))
    return (
        list(make_feed(Source(held), stream, range(2), workers, device).batches(steps)),
        list(make_feed(usual, stream, range(2), 0, CPU).batches(steps)),
    )


def assert_equal(ours: list, theirs: list) -> None:
    assert len(ours) == len(theirs) == 4
    for mine, usual in zip(ours, theirs, strict=True):
        images = mine["image"]
        assert images.shape == (32, 3, 32, 32) or images.shape == (32, 1, 32, 32)
        assert images.is_contiguous() and torch.equal(images.cpu(), usual["image"])
        assert torch.equal(mine["label"].cpu(), usual["label"])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("augment.crop_fill=reflect",),
        ("augment.crop_padding=0",),
        ("augment.flip=0",),
        ("augment.crop_padding=0", "augment.flip=0"),
        ("augment.flip=0.9", "augment.crop_padding=1", "seed=3"),
        ("augment.rotate=15", "augment.random_erase=0.5"),
        ("augment.random_erase=1", "augment.crop_padding=0", "augment.flip=0"),
        ("augment.rotate=180", "augment.crop_padding=0", "augment.flip=0"),
        ("data.channels=1", "data.mean=[0.3]", "data.std=[0.7]", "augment.rotate=40"),
    ],
    ids=" ".join,
)
def test_pixels_are_those_of_the_ordinary_path(overrides):
    assert_equal(*both(*overrides))


def test_turns_are_pils_rotation_to_the_nearest_pixel():
    generator = np.random.default_rng(0)
    angles = [0.0, 45.0, 90.0, 180.0, -90.0, 1e-7, *generator.uniform(-180, 180, 60).tolist()]
    for size in (8, 28, 33, 64):
        image = noise((size, size))
        line = torch.arange(size)
        turns = torch.tensor([resident.turn(angle, size) for angle in angles])
        rows, columns, inside = resident._turned(turns, line.view(1, -1, 1), line, size)
        ours = torch.from_numpy(np.array(image))[rows, columns] * inside.unsqueeze(-1)
        theirs = [np.array(image.rotate(angle)) for angle in angles]
        assert torch.equal(ours, torch.from_numpy(np.stack(theirs)))


def test_pixels_of_cifars_own_files(real_images):
    folder = real_images("cifar10_exact1017.tar.gz")
    ours, theirs = both("data.name=cifar10", "data.verify=false", f"data.dir={folder}")
    assert_equal(ours, theirs)
    assert len(torch.cat([batch["label"] for batch in ours]).unique()) == 10


def test_workers_decode_and_draw_the_same():
    assert_equal(*both(workers=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_has_the_same_pixels():
    ours, theirs = both(device=torch.device("cuda"))
    assert ours[0]["image"].is_cuda
    assert_equal(ours, theirs)


def test_crops_and_flips_are_all_there():
    draws = resident.Draws(Augment(crop_padding=4, flip=0.5), size=32)
    rows = draws.__getitems__([View(5, seed) for seed in range(2000)]).data["rows"]
    assert rows[:, 0].eq(5).all()
    for column, values in ((1, 9), (2, 9), (3, 2)):
        counts = rows[:, column].bincount()
        assert len(counts) == values and counts.min() > 0.7 * 2000 / values
    again = draws.__getitems__([View(5, seed) for seed in range(1990, 2000)])
    assert torch.equal(again.data["rows"], rows[1990:]), "a draw depends only on its seed"


def test_black_borders_are_black_before_they_are_normalised():
    recipe = load_recipe(RECIPE, ["data.name=synthetic"])
    held = resident.Resident(load_splits(recipe.data).train, recipe, recipe.augment)
    images = held.take(torch.tensor([[3, 0, 8, False]]))["image"]
    black = -torch.tensor(recipe.data.mean) / torch.tensor(recipe.data.std)
    torch.testing.assert_close(images[0, :, :4, :], black.view(3, 1, 1).expand(3, 4, 32))
    torch.testing.assert_close(images[0, :, :, 28:], black.view(3, 1, 1).expand(3, 32, 4))
    assert (images[0, :, 4:, :28] - black.view(3, 1, 1)).abs().amax((1, 2)).gt(0).all()


def test_validation_images_are_neither_moved_nor_flipped():
    recipe = load_recipe(RECIPE, ["data.name=synthetic"])
    images = load_splits(recipe.data).val
    sources = (
        Source(resident.Resident(images, recipe)),
        Source(images, augment.eval_transform(recipe)),
    )
    order = Once(len(images), 2, 20)
    ours, theirs = (next(make_feed(one, order, [1], 0, CPU).batches([1])) for one in sources)
    assert ours.keys() == theirs.keys() and len(ours["label"]) == 12
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_images_of_another_size_are_refused():
    recipe = load_recipe(
        "quickstart", ["data.resident=true", "augment.affine=null", "data.image_size=9"]
    )
    with pytest.raises(
        UserError, match=r"data.resident: image 0 has 8 x 8 px, data.image_size is 9; set data.res"
    ):
        resident.Resident(load_splits(recipe.data).train, recipe)


def test_what_needs_an_image_of_its_own_is_refused():
    settings = ["augment.rand_augment=rand-m9", "augment.crop_scale=[0.1,1]", "evaluate.crop=0.9"]
    with pytest.raises(UserError) as error:
        load_recipe(RECIPE, settings)
    lines = str(error.value).splitlines()
    assert [line.split("cannot have ")[1].split(";")[0] for line in lines] == [
        "augment.crop_scale", "augment.rand_augment", "evaluate.crop below 1"]  # fmt: skip


def test_a_run_may_go_on_without():
    held, usual = (load_recipe(RECIPE, [f"data.resident={value}"]) for value in ("true", "false"))
    assert differences(held, usual) == []
