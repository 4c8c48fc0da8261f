"""ImageNet: every form on disk gives the order and labels of torchvision's ImageFolder, and what is
missing is said.

The photos are real, one a class; whole ImageNet is not at hand, so its counts are tested on lists
of labels alone.
"""

import importlib.util
import io
import os
import pickle
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from deit_tract.common.errors import UserError
from deit_tract.data.sets import hugging_face, imagenet, images, tars
from deit_tract.data.sets.folder import open_parts
from deit_tract.data.sets.load import load_splits
from deit_tract.recipe.settings.recipe import Data

OFFICIAL = ImageNetInfo().label_names()


def data(directory, **values) -> Data:
    settings = {
        "name": "imagenet",
        "image_size": 16,
        "classes": 1000,
        "dir": str(directory),
        "verify": False,
    }
    return Data(**settings | values)


def fails(settings: Data) -> str:
    with pytest.raises(UserError) as caught:
        load_splits(settings)
    return str(caught.value)


def raw(images: images.Images, index: int) -> bytes:
    source = images.open(index)
    return source.read() if hasattr(source, "read") else Path(source).read_bytes()


def copy(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(old, new)  # a hard link would be one in a tar too


@pytest.fixture(scope="module")
def photos(real_images, tmp_path_factory):
    """Class folders of the 1,000 photos, some under several numbers whose order as text is not that
    as numbers.
    """
    source, root = (
        real_images("imagenet_samples_256.tar") / "train",
        tmp_path_factory.mktemp("photos"),
    )
    for folder in source.iterdir():
        (photo,) = folder.iterdir()
        copy(photo, root / "val" / folder.name / photo.name)
        copy(photo, root / "train" / folder.name / f"{folder.name}_9.JPEG")
    some = sorted(path for path in source.rglob("*.JPEG"))[:40]
    for count, photo in enumerate(some):
        name, number = OFFICIAL[count // 4], (1003, 10031, 101, 18)[count % 4]
        copy(photo, root / "train" / name / f"{name}_{number}.JPEG")
    return root


def shuffled(folder: Path) -> list[Path]:
    paths = sorted(folder.rglob("*.JPEG"))
    random.Random(0).shuffle(paths)
    return paths


def one_tar(photos: Path, root: Path) -> None:
    for part in ("train", "val"):
        with tarfile.open(root / f"{part}.tar", "w") as tar:
            for path in shuffled(photos / part):
                tar.add(path, f"{part}/{path.parent.name}/{path.name}")


def class_tars(photos: Path, root: Path) -> None:
    for part in ("train", "val"):
        (root / part).mkdir()
        for folder in (photos / part).iterdir():
            with tarfile.open(root / part / f"{folder.name}.tar", "w") as tar:
                for path in shuffled(folder):
                    tar.add(path, path.name)


def tar_of_tars(photos: Path, root: Path) -> None:
    class_tars(photos, root)
    for part in ("train", "val"):
        with tarfile.open(root / f"ILSVRC2012_img_{part}.tar", "w") as tar:
            for path in sorted((root / part).iterdir(), reverse=True):
                tar.add(path, path.name)
                path.unlink()
        (root / part).rmdir()


def rows(folder: Path, hub: bool):
    """A Hugging Face data set of class folders; `hub`: with English class names, as
    ILSVRC/imagenet-1k has them.
    """
    hf = pytest.importorskip("datasets")
    paths, suffix = shuffled(folder), (lambda path: f"_{path.parent.name}" if hub else "")
    images = [{"bytes": p.read_bytes(), "path": f"{p.stem}{suffix(p)}{p.suffix}"} for p in paths]
    names = [f"thing {99 - i % 100} {i}" for i in range(1000)] if hub else OFFICIAL
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    labels = [OFFICIAL.index(path.parent.name) for path in paths]
    return hf.Dataset.from_dict({"image": images, "label": labels}, features)


def saved(photos: Path, root: Path) -> None:
    hf = pytest.importorskip("datasets")
    parts = {
        "train": rows(photos / "train", hub=False),
        "validation": rows(photos / "val", hub=False),
    }
    hf.DatasetDict(parts).save_to_disk(root)


def saved_from_hub(photos: Path, root: Path) -> None:
    hf = pytest.importorskip("datasets")
    parts = {
        "train": rows(photos / "train", hub=True),
        "validation": rows(photos / "val", hub=True),
    }
    hf.DatasetDict(parts).save_to_disk(root)


def linked_folders(photos: Path, root: Path) -> None:
    for part in ("train", "val"):
        (root / part).symlink_to(photos / part)


FORMS = (linked_folders, one_tar, class_tars, tar_of_tars, saved, saved_from_hub)


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.__name__)
def form(request, photos, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param.__name__)
    request.param(photos, root)
    return load_splits(data(root))


def test_every_form_has_imagefolders_order_labels_and_bytes(form, photos):
    for part, ours in zip(("train", "val"), form, strict=True):
        reference = ImageFolder(str(photos / part))
        assert imagenet.synsets(ours) == reference.classes == OFFICIAL
        assert ours.labels.tolist() == reference.targets
        assert [raw(ours, i) for i in range(len(ours))] == [
            Path(p).read_bytes() for p, _ in reference.samples
        ]
        for index in (0, 500, len(ours) - 1):
            image, label = ours[index]
            expected, target = reference[index]
            assert image.tobytes() == expected.tobytes() and type(label) is int and label == target
        with pytest.raises(IndexError):
            ours[len(ours)]


def test_every_form_reaches_workers_after_it_was_read_here(form):
    here = [
        (np.asarray(image).sum(), label) for image, label in map(form.val.__getitem__, range(40))
    ]
    copy = pickle.loads(pickle.dumps(form.val))
    assert (np.asarray(copy[3][0]).sum(), copy[3][1]) == here[3]
    loader = DataLoader(
        form.val, batch_sampler=[[i] for i in range(40)], num_workers=2, collate_fn=list
    )
    there = [(np.asarray(image).sum(), label) for ((image, label),) in loader]
    assert there == here


def test_greyscale_photos_come_as_three_equal_channels(photos, tmp_path):
    """25 photos of the sample are grey; they are stored here as ImageNet has its greyscale ones,
    with one channel.
    """
    val, grey = load_splits(data(photos)).val, {}
    for index in range(len(val)):
        pixels = np.asarray(val[index][0])
        if (pixels == pixels[..., :1]).all():
            (tmp_path / OFFICIAL[index]).mkdir()
            Image.fromarray(pixels[..., 0]).save(tmp_path / OFFICIAL[index] / "x.JPEG", quality=100)
            grey[OFFICIAL[index]] = pixels
    ours = images.Folders(tmp_path, "RGB")
    assert len(grey) == len(ours) == 25
    for (image, _), before in zip((ours[i] for i in range(25)), grey.values(), strict=True):
        pixels = np.asarray(image)
        assert pixels.shape == before.shape and (pixels == pixels[..., :1]).all()
        assert np.abs(pixels.astype(int) - before).max() <= 3  # JPEG's rounding


def test_timms_reader_finds_the_same_images_in_a_tar(photos, tmp_path):
    one_tar(photos, tmp_path)
    ours, theirs = (
        tars.Tars(tmp_path / "train.tar", "RGB"),
        ReaderImageInTar(str(tmp_path / "train.tar")),
    )
    pairs = [(theirs[i][0].read(), int(theirs[i][1])) for i in range(len(theirs))]
    assert sorted(pairs) == sorted((raw(ours, i), int(ours.labels[i])) for i in range(len(ours)))


def test_the_hub_through_timms_reader(photos, tmp_path, monkeypatch):
    hf = pytest.importorskip("datasets")
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    few = [OFFICIAL[0], OFFICIAL[6]]
    (tmp_path / "set" / "data").mkdir(parents=True)
    for folder, part in (("train", "train"), ("val", "validation")):
        both = rows(photos / folder, hub=True)
        keep = [i for i, label in enumerate(both["label"]) if OFFICIAL[label] in few]
        both.select(keep).to_parquet(tmp_path / "set" / "data" / f"{part}-00000-of-00001.parquet")
    for folder, ours in zip(
        ("train", "val"), open_parts(f"hfds/{tmp_path / 'set'}", ("train", "val")), strict=True
    ):
        expected = [path for name in few for path in sorted((photos / folder / name).iterdir())]
        assert [raw(ours, i) for i in range(len(ours))] == [path.read_bytes() for path in expected]
        assert ours.name(0) == f"{expected[0].stem}_{few[0]}.JPEG"
    assert (tmp_path / "cache").exists()
    with pytest.raises(UserError, match=r"^hfds//nowhere/set: cannot be loaded"):
        open_parts("hfds//nowhere/set", ("train",))


def test_hugging_face_without_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fails(data("hfds/ILSVRC/imagenet-1k")).endswith(
        "need the package 'datasets'; pip install datasets"
    )


def test_hugging_face_without_names_or_labels(photos, tmp_path):
    hf = pytest.importorskip("datasets")
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    cells = [{"bytes": picture.getvalue(), "path": None}] * 2
    features = hf.Features({"img": hf.Image(), "fine": hf.ClassLabel(names=OFFICIAL[:2])})
    unnamed = hf.Dataset.from_dict({"img": cells, "fine": [1, 0]}, features)
    with pytest.raises(
        UserError, match="images without file names, by which the reference orders them"
    ):
        hugging_face.HuggingFace(unnamed, "set", "RGB")
    assert hugging_face.HuggingFace(unnamed, "set", "RGB", ordered=False)[0][1] == 0
    with pytest.raises(UserError, match="set: has no column of type ClassLabel; its columns: img"):
        hugging_face.HuggingFace(unnamed.remove_columns("fine"), "set", "RGB")
    unlabelled = hf.Dataset.from_dict({"img": cells, "fine": [-1, -1]}, features)
    with pytest.raises(UserError, match="images without a label"):
        hugging_face.HuggingFace(unlabelled, "set", "RGB")


@pytest.fixture
def tiny(tmp_path):
    """Two classes of ImageNet, three small images each, in train and val."""
    for part in ("train", "val"):
        for name in OFFICIAL[:2]:
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8), (index * 99, 0, 0)).save(
                    tmp_path / part / name / f"{name}_{index}.JPEG"
                )
    return tmp_path


def as_tar(folder: Path) -> Path:
    """A tar of the class folders beside them, and the folders gone."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    folder.rename(folder.with_name(f"was_{folder.name}"))
    return path


def test_a_part_of_it_is_accepted_when_not_verified(tiny):
    assert len(load_splits(data(tiny, classes=2)).train) == 6
    assert "data.classes: 1000, but the data has 2" in fails(data(tiny))


def test_all_that_is_missing_is_said_at_once(tiny):
    lines = fails(data(tiny, verify=True)).splitlines()
    assert len(lines) == 6 and all("data.verify=false" in line for line in lines)
    assert lines[0].startswith(f"{tiny}/train: 998 of 1,000 classes are missing: {OFFICIAL[2]}, ")
    assert f"{tiny}/train: 6 training images, ImageNet has 1,281,167" in lines[1]
    assert (
        f"{tiny}/val: 2 classes do not have 50 images: n01440764 has 3, n01443537 has 3;"
        in lines[5]
    )


class Listed(images.Images):
    root, mode = "set", "RGB"

    def __init__(self, counts, classes=OFFICIAL, name="x.JPEG"):
        self.labels, self.classes, self._name = (
            np.repeat(np.arange(len(counts)), counts),
            classes,
            name,
        )

    def name(self, index: int) -> str:
        return self._name


def test_whole_imagenet_passes():
    train = np.full(1000, 1281)
    train[:167] += 1
    for part, counts in (("train", train), ("val", np.full(1000, 50))):
        assert not list(imagenet.imagenet_problems("imagenet", part, Listed(counts)))


@pytest.mark.parametrize("change", [-1, 1])
def test_one_image_less_or_more_is_told(change):
    counts = np.full(1000, 50)
    counts[7] += change
    total, of_class = imagenet.imagenet_problems("imagenet", "val", Listed(counts))
    assert str(total).startswith(
        f"set: {50_000 + change:,} validation images, ImageNet has 50,000;"
    )
    assert f"1 classes do not have 50 images: {OFFICIAL[7]} has {50 + change};" in str(of_class)


def test_labels_in_another_order_are_told():
    swapped = [OFFICIAL[1], OFFICIAL[0], *OFFICIAL[2:]]
    (error,) = imagenet.imagenet_problems("imagenet", "val", Listed(np.full(1000, 50), swapped))
    assert "not in the order of the sorted synsets" in str(error)


def test_other_classes_than_imagenets_are_told(tiny):
    for part in ("train", "val"):
        (tiny / part / OFFICIAL[1]).rename(tiny / part / "n99999999")
    message = fails(data(tiny, classes=2))
    assert (
        f"{tiny}/train: 1 of 2 classes are not synsets of ImageNet-1k: n99999999; for another set"
        in message
    )
    for part in ("train", "val"):
        (tiny / part / "n99999999").rename(tiny / part / "goldfish")
    assert "not synsets of ImageNet-1k: goldfish" in fails(data(tiny, classes=2))


def test_a_class_that_validation_lacks_is_told(tiny):
    (tiny / "val" / OFFICIAL[1]).rename(tiny / "val" / OFFICIAL[2])
    assert f"{tiny}/val: classes differ from those of {tiny}/train: n01443537" in fails(
        data(tiny, classes=2)
    )


def test_flat_validation_says_how_to_sort_it(tiny):
    for number, path in enumerate(sorted((tiny / "val").rglob("*.JPEG"))):
        path.rename(tiny / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    for name in OFFICIAL[:2]:
        (tiny / "val" / name).rmdir()
    message = fails(data(tiny, classes=2))
    assert (
        f"{tiny}/val: holds 6 images, but no class folders; "
        "sort each image into the folder of its syn" in message
    )
    assert message.endswith("python tools/prepare.py imagenet DIR --fix-val LABELS")
    as_tar(tiny / "val")
    message = fails(data(tiny, classes=2))
    assert (
        f"{tiny}/val.tar: holds images outside of class folders; unpack it to {tiny}/val and sort"
        in message
    )


def test_a_broken_image_in_a_tar_is_named_with_its_member(tiny):
    path = tiny / "train" / OFFICIAL[1] / f"{OFFICIAL[1]}_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    as_tar(tiny / "train")
    train = load_splits(data(tiny, classes=2)).train
    with pytest.raises(
        UserError, match=r"/train.tar:./n01443537/n01443537_1.JPEG: cannot be read as an image"
    ):
        train[4]
    assert train[5][1] == train[-1][1] == 1


def test_a_tar_that_is_none_or_empty_or_cut_off(tiny):
    tar = as_tar(tiny / "train")
    whole = tar.read_bytes()
    end = tars.Tars(tar, "RGB")._offset.max()
    for content, message in (
        (b"no tar at all" * 1000, "cannot be read as a tar"),
        (
            whole[: end + 100],
            "cannot be read as a tar (unexpected end of data); download or pack it again",
        ),
        (whole[: end - 300], "cannot be read as a tar"),  # inside a header
        (bytes(10240), "holds no images"),
    ):
        tar.write_bytes(content)
        assert message in fails(data(tiny, classes=2))


def test_the_index_of_large_tars_is_kept_until_they_change(tiny, monkeypatch):
    monkeypatch.setattr(tars, "INDEX_FROM", 1)
    tar, kept = as_tar(tiny / "train"), tiny / ".train.tar.index.npz"
    first = tars.Tars(tar, "RGB")
    assert kept.exists() and len(list(tiny.glob(".train*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tars, "_scan", lambda *_: pytest.fail("read again"))
        again = tars.Tars(tar, "RGB")
    assert [raw(again, i) for i in range(6)] == [
        raw(first, i) for i in range(6)
    ] and again.classes == first.classes
    assert again.labels.tolist() == [0, 0, 0, 1, 1, 1] and again.name(4) == first.name(4)
    with tarfile.open(tar, "a") as more:
        more.add(
            tiny / "was_train" / OFFICIAL[0] / f"{OFFICIAL[0]}_0.JPEG", f"{OFFICIAL[0]}/z.JPEG"
        )
    assert len(tars.Tars(tar, "RGB")) == 7
    kept.write_bytes(b"broken")
    assert len(tars.Tars(tar, "RGB")) == 7 == len(np.load(kept)["labels"])


def test_an_index_that_cannot_be_kept_is_a_warning(tiny, monkeypatch):
    monkeypatch.setattr(tars, "INDEX_FROM", 1)
    monkeypatch.setattr(
        tars.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only"))
    )
    with pytest.warns(UserWarning, match="every start reads the tars again"):
        tars.Tars(as_tar(tiny / "train"), "RGB")
    assert not list(tiny.glob(".train*"))


def test_many_tars_do_not_stay_open(photos, tmp_path):
    class_tars(photos, tmp_path)
    train = tars.Tars(tmp_path / "train", "RGB")
    before = len(os.listdir("/proc/self/fd"))
    for index in range(0, 1000, 10):
        raw(train, index)
    assert len(os.listdir("/proc/self/fd")) - before <= tars.FEW_TARS
