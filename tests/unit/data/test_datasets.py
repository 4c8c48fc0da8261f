"""Data sets: the built-in digits, folders and their checks, the synthetic set."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets import folder as datasets_folder

from deit_tract.common.errors import UserError
from deit_tract.data.sets.load import load_splits
from deit_tract.data.sets.synthetic import SyntheticObjects
from deit_tract.data.transforms import augment
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import Data


def data(name: str, directory=None, **values) -> Data:
    return Data(
        **{"name": name, "image_size": 16, "classes": 2, "dir": directory and str(directory)}
        | values
    )


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for index in range(3):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / kind / f"{index}.png")
    return tmp_path


def fails(settings: Data) -> str:
    with pytest.raises(UserError) as caught:
        load_splits(settings)
    return str(caught.value)


def test_digits_are_all_there_and_split_for_good():
    train, val = load_splits(data("digits", classes=10, channels=1))
    assert (len(train), len(val)) == (1437, 360)
    image, label = val[0]
    assert (
        image.mode == "L" and image.size == (8, 8) and label == 0 and np.array(image).max() <= 255
    )
    held_out = {np.array(val[i][0]).tobytes() for i in range(360)}
    assert len({np.array(train[i][0]).tobytes() for i in range(1437)} & held_out) == 0
    assert {val[i][1] for i in range(360)} == set(range(10))


def test_synthetic_is_the_same_each_time_and_tells_its_class():
    first, again = load_splits(data("synthetic")).train, load_splits(data("synthetic")).train
    assert (np.array(first[5][0]) == np.array(again[5][0])).all()
    assert np.array(first[1][0]).mean() > np.array(first[0][0]).mean() + 50


def test_folder_reads_what_lies_there(folder):
    train, val = load_splits(data("folder", folder))
    assert len(train) == len(val) == 6 and train[5][1] == 1 and train[0][0].size == (24, 20)
    grey = load_splits(data("folder", folder, channels=1, mean=[0.5], std=[0.5])).train
    assert grey[0][0].mode == "L"


def test_greyscale_palette_and_alpha_files_come_as_rgb(folder):
    for index, mode in enumerate(("L", "P", "RGBA", "1", "I;16")):
        Image.new(mode, (20, 24)).save(folder / "train" / "cat" / f"{index}x.png")
    Image.new("CMYK", (20, 24)).save(folder / "train" / "cat" / "cmyk.jpg")
    train = load_splits(data("folder", folder)).train
    assert {train[i][0].mode for i in range(len(train))} == {"RGB"}


GREY16 = np.linspace(0, 65535, 480, dtype=np.uint16).reshape(20, 24)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "CMYK", "YCbCr"])
def test_odd_images_are_converted_as_pillow_does(folder, mode):
    noise = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (20, 24, 4), dtype=np.uint8), "RGBA"
    )
    image = Image.fromarray(GREY16) if mode == "I;16" else noise.convert("RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(noise.getchannel("A"))
    path = folder / "train" / "cat" / ("0.jpg" if mode in ("CMYK", "YCbCr") else "0.png")
    (folder / "train" / "cat" / "0.png").unlink()
    image.save(path, **({"transparency": 3} if mode == "P" else {}))
    ours = load_splits(data("folder", folder)).train[0][0]
    reference = datasets_folder.pil_loader(str(path))
    assert (ours.mode, ours.size) == ("RGB", (24, 20)) and ours.tobytes() == reference.tobytes()


def test_exif_does_not_turn_an_image_and_content_beats_the_ending(folder):
    path, exif = folder / "train" / "cat" / "0.png", Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (24, 20), "red").save(path, "jpeg", exif=exif)
    assert load_splits(data("folder", folder)).train[0][0].size == (24, 20)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 5)])
def test_images_smaller_than_the_crop_are_enlarged(folder, size):
    for part in ("train", "val"):
        Image.new("RGB", size, (200, 100, 0)).save(folder / part / "cat" / "0.png")
    recipe = load_recipe(
        "folder_vit_ti",
        ["data.image_size=16", "data.classes=2", "evaluate.crop=0.875"],
        str(folder),
    )
    splits = load_splits(recipe.data)
    for images, transform in zip(
        splits, (augment.train_transform(recipe), augment.eval_transform(recipe)), strict=True
    ):
        view = transform(images[0][0])
        assert view.shape == (3, 16, 16) and bool(view.isfinite().all())
    low = (torch.tensor([200, 100, 0]) / 255 - torch.tensor(recipe.data.mean)) / torch.tensor(
        recipe.data.std
    )
    assert torch.allclose(view.mean((1, 2)), low, atol=1e-5)  # one colour stays it


def test_files_are_ordered_as_text_below_their_class(folder):
    for name in ("x_1003.png", "x_101.png", "Z.png", "sub/a.png"):
        (folder / "train" / "cat" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / "train" / "cat" / name)
    train = load_splits(data("folder", folder)).train
    names = ["0.png", "1.png", "2.png", "Z.png", "x_1003.png", "x_101.png", "sub/a.png"]
    assert [train.name(i) for i in range(7)] == [f"cat/{name}" for name in names]
    assert [train.where(i) for i in range(10)] == [
        path for path, _ in ImageFolder(str(folder / "train")).samples
    ]


def test_no_folder_given_missing_or_wrong(tmp_path):
    assert "give --data-dir DIR" in fails(data("folder"))
    assert "nowhere: no such folder" in fails(data("folder", tmp_path / "nowhere"))
    assert "has no folder train" in fails(data("folder", tmp_path))
    (tmp_path / "train").mkdir()
    assert "has no folder val or validation or test" in fails(data("folder", tmp_path))
    (tmp_path / "val").mkdir()
    assert "cannot be read as class folders" in fails(data("folder", tmp_path))


def test_an_empty_class_folder_is_named(folder):
    (folder / "train" / "fox").mkdir()
    (folder / "val" / "fox").mkdir()
    assert "1 class folder without an image: fox" in fails(data("folder", folder, classes=3))


def test_other_classes_in_validation_are_named(folder):
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    assert "classes differ" in fails(data("folder", folder)) and "dog, wolf" in fails(
        data("folder", folder)
    )


def test_the_number_of_classes_is_checked(folder):
    message = fails(data("folder", folder, classes=1000))
    assert message == "data.classes: 1000, but the data has 2; set data.classes=2"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken", None])
def test_an_unreadable_image_is_named(folder, content):
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    train = load_splits(data("folder", folder)).train
    with pytest.raises(
        UserError, match=r"train/cat/1.png: cannot be read as an image .*; replace or remove it"
    ):
        train[1]


def test_a_share_of_the_training_images_is_drawn_by_its_seed_and_the_rest_left_out(folder):
    """The same images whatever else the recipe says; validation images are all there."""
    digits = Data(name="digits", image_size=8, classes=10, channels=1, mean=[0.0], std=[1.0])
    whole = load_splits(digits)
    tenth = load_splits(digits.model_copy(update={"share": 0.1}))
    again = load_splits(digits.model_copy(update={"share": 0.1, "workers": 0}))
    other = load_splits(digits.model_copy(update={"share": 0.1, "split_seed": 1}))
    assert len(tenth.train) == 144 and len(tenth.val) == len(whole.val)
    assert np.array_equal(tenth.train.pixels, again.train.pixels)
    assert not np.array_equal(tenth.train.pixels, other.train.pixels)
    everything = {image.tobytes() for image in whole.train.pixels}
    assert {image.tobytes() for image in tenth.train.pixels} <= everything
    files = load_splits(data("folder", folder, share=0.5)).train
    assert (
        len(files) == 3 and files[0][0].size == load_splits(data("folder", folder)).train[0][0].size
    )


def test_made_photos_of_any_size_have_boxes():
    for size in (1, 2, 3):
        for index, found in enumerate(SyntheticObjects(size, ["a", "b"], range(3)).objects):
            sides = found.boxes[:, 2:] - found.boxes[:, :2]
            assert len(sides) == 1 + index and (sides >= 1).all()
