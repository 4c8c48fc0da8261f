"""Photos with boxes in VOC's layout: boxes, flags and flips, and what is said of a set that is not
as it must be.
"""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.data.sets import voc
from deit_tract.data.sets.boxes import Objects, Photo
from deit_tract.data.sets.load import load_splits
from deit_tract.data.sets.official import changed_files
from deit_tract.data.transforms.detection import ToSample
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.voc import (
    PHOTOS,
    SPLITS,
    annotation,
    small,  # noqa: F401 - a fixture
    write,
)

NAMES = ["cat", "dog"]


def load(folder: Path, *overrides: str, names=NAMES):
    settings = [
        f"detect.class_names=[{', '.join(names)}]",
        f"data.classes={len(names)}",
        "data.name=voc",
        *overrides,
    ]
    recipe = load_recipe("voc2007_frcnn_vgg16", settings, str(folder))
    return load_splits(recipe.data, recipe.detect)


def test_boxes_are_half_open_from_0_and_difficult_is_kept(small):
    train, val = load(small)
    assert (len(train), len(val), train.ids) == (3, 1, ["000005", "2007_000027", "empty"])
    assert train.objects[0].boxes.tolist() == [[0, 0, 64, 48], [9, 10, 20, 31]]
    assert train.objects[0].labels.tolist() == [2, 1] and train.objects[0].difficult.tolist() == [
        False,
        True,
    ]
    assert train.objects[1].boxes.tolist() == [[1.5, 2, 4, 9]] and train.objects[
        1
    ].labels.tolist() == [1]
    assert train.objects[2].boxes.shape == (0, 4) and train.objects[2].labels.dtype == torch.int64
    photo, label = train[1]
    assert (
        photo.image.size == (64, 48)
        and photo.image.mode == "RGB"
        and (photo.index, label) == (1, None)
    )


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_folder_may_be_given_at_any_depth(small, below):
    assert len(load(small / below)[0]) == 3


def test_a_set_of_another_name_with_other_splits_and_pngs(tmp_path):
    root = write(
        tmp_path, PHOTOS, {"mine": ["empty", "000005"], "theirs": ["000005"]}, year="VOC_birds"
    )
    Image.new("RGB", (64, 48)).save(root / "JPEGImages" / "empty.png")
    (root / "JPEGImages" / "empty.jpg").unlink()
    train, _ = load(tmp_path, "detect.train_split=mine", "detect.val_split=theirs")
    assert train[0][0].image.size == (64, 48) and train.files == ["empty.png", "000005.jpg"]
    with pytest.raises(
        UserError,
        match=r"trainval.txt: cannot be read .*there are mine, theirs: set detect.train_spl",
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            annotation(("cow", 1, 1, 5, 5, 0)),
            r"bad.xml: object 1 is of class 'cow', which detect.class_names lacks",
        ),
        (annotation(("dgo", 1, 1, 5, 5, 0)), r"did you mean 'dog'\?"),
        (annotation(("dog", 5, 1, 4, 5, 0)), r"bad.xml: the box .* of object 1 is empty"),
        (annotation(("dog", "nan", 1, 4, 5, 0)), r"is empty"),
        (annotation(("dog", "x", 1, 4, 5, 0)), r"bad.xml: xmin is 'x', not a number"),
        (
            annotation(("dog", 5, 1, 70, 5, 0)),
            r"bad.xml: the box .* of object 1 leaves the 64 x 48 px of its image",
        ),
        (annotation(("dog", -5, 1, 7, 5, 0)), r"leaves the 64 x 48 px"),
        (annotation(("dog", 1, 1, 5, 5, 0)).replace("bndbox", "polygon"), r"object 1 has no box"),
        ("<annotation><object>", r"bad.xml: cannot be read as an annotation \(no element found"),
        (None, r"bad.xml: cannot be read as an annotation \(.*No such file"),
    ],
)
def test_a_bad_annotation_is_named_before_training(small, text, message):
    root = write(small, {"bad": text or ""}, {"trainval": ["000005", "bad"]})
    if text is None:
        (root / "Annotations" / "bad.xml").unlink()
    with pytest.raises(UserError, match=message):
        load(small)


def test_every_bad_file_is_named_and_very_many_are_counted(small):
    many = {f"bad{number:02d}": annotation(("cow", 1, 1, 5, 5, 0)) for number in range(25)}
    write(small, many, {"trainval": ["000005", *many]})
    with pytest.raises(UserErrors) as error:
        load(small)
    lines = str(error.value).splitlines()
    assert (
        len(lines) == 21
        and "bad19.xml" in lines[19]
        and lines[20].endswith("5 files more are like that")
    )


def test_boxes_of_tools_that_count_from_0_are_cut_at_the_border(small):
    write(small, {"000005": annotation(("dog", 0, 0, 65, 49, 0))}, {})
    assert load(small)[1].objects[0].boxes.tolist() == [[0, 0, 64, 48]]


def test_a_missing_photo_and_one_of_another_size(small):
    path = small / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000005.jpg"
    Image.new("RGB", (48, 64)).save(path)
    with pytest.raises(UserError, match=r"000005.jpg: is 48 x 64 px, its annotation says 64 x 48"):
        load(small)[1][0]
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"000005.jpg: cannot be read as an image"):
        load(small)[1][0]
    path.unlink()
    with pytest.raises(UserError, match=r"000005.jpg: is not there; read are .jpg"):
        load(small)


@pytest.mark.parametrize(
    ("ids", "message"), [(["a", "a"], "lists a more than once"), ([], "lists no image")]
)
def test_a_split_without_images_or_with_one_twice(small, ids, message):
    write(small, {}, {"test": ids})
    with pytest.raises(UserError, match=message):
        load(small)


def test_nothing_to_find_in_the_evaluation(small):
    write(small, {"hard": annotation(("dog", 1, 1, 5, 5, 1))}, {"test": ["hard", "empty"]})
    with pytest.raises(UserError, match="split test has no object to find"):
        load(small)


def test_voc2007_has_its_official_counts(small):
    with pytest.raises(UserErrors) as error:
        load(small, "data.name=voc2007")
    first, second = str(error.value).splitlines()
    assert (
        "3 training images, PASCAL VOC2007 has 5,011; complete it, or set data.verify=false"
        in first
        and "4,952" in second
    )
    assert len(load(small, "data.name=voc2007", "data.verify=false")[0]) == 3


def test_no_folder_and_several_sets(small):
    with pytest.raises(
        UserError, match=r"holds no data in VOC's layout; expected DIR/VOCdevkit/VOC2007 with"
    ):
        load(small / "nowhere")
    write(small, PHOTOS, SPLITS, year="VOC2012")
    with pytest.raises(UserError, match=r"holds 2 sets: .*VOC2007, .*VOC2012; give one of them"):
        load(small)
    assert len(load(small / "VOCdevkit" / "VOC2012")[0]) == 3


def test_a_mirrored_photo_has_mirrored_boxes():
    """Painted rectangles: what a box covers stays what it covers."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[10:31, 9:20] = 200
    objects = Objects(torch.tensor([[9.0, 10, 20, 31]]), torch.tensor([1]), torch.tensor([False]))
    photo = Photo(Image.fromarray(pixels), objects, 7)
    seen = set()
    for seed in range(20):
        random.seed(seed)
        sample = ToSample(flip=0.5)(photo)
        image = sample["image"]
        x0, y0, x1, y1 = sample["boxes"][0].int().tolist()
        assert (
            (image[:, y0:y1, x0:x1] > 0.7).all()
            and (image > 0.7).sum() == 3 * 21 * 11
            and sample["index"] == 7
        )
        seen.add(x0)
    assert seen == {9, 44}


def test_difficult_objects_are_left_out_of_training_alone(small):
    photo, _ = load(small)[0][0]
    assert ToSample(difficult=False)(photo)["labels"].tolist() == [2]
    assert ToSample()(photo)["labels"].tolist() == [2, 1]


def test_the_real_photos(real_images):
    recipe = load_recipe(
        "voc2007_frcnn_vgg16", ["data.verify=false"], str(real_images("voc100.tar"))
    )
    train, val = splits = load_splits(recipe.data, recipe.detect)
    assert (len(train), len(val)) == (60, 40) and train.ids[0] == "2007_000027"
    objects = [one for split in splits for one in split.objects]
    assert (
        sum(len(one.labels) for one in objects) == 273
        and sum(int(one.difficult.sum()) for one in objects) == 38
    )
    for split in splits:
        assert set(torch.cat([one.labels for one in split.objects]).tolist()) == set(range(1, 21))
        for photo, _ in (split[index] for index in range(len(split))):
            limit = torch.tensor([*photo.image.size] * 2)
            assert (photo.objects.boxes <= limit).all() and (
                photo.objects.boxes[:, 2:] > photo.objects.boxes[:, :2]
            ).all()


def test_a_tar_with_its_md5_is_right(tmp_path, monkeypatch):
    (tmp_path / "VOCtest_06-Nov-2007.tar").write_bytes(b"all of it")
    assert len(list(changed_files(tmp_path, voc.TARS))) == 1
    monkeypatch.setitem(voc.TARS, "VOCtest_06-Nov-2007.tar", hashlib.md5(b"all of it").hexdigest())
    assert list(changed_files(tmp_path, voc.TARS)) == []
