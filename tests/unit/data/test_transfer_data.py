"""Flowers-102 and Stanford Cars in their official layouts, and tools/prepare.py on the transfer
sets.

Flowers' lists are the authors'; its photos are made here, at the paths that the lists name.
"""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as torchvision_datasets

from deit_tract.data.sets import cifar
from deit_tract.data.sets.cars import FILES
from deit_tract.data.sets.images import Splits
from deit_tract.data.sets.load import READERS, load_splits
from deit_tract.plan.plan import count_samples
from tests.helpers import REAL_IMAGES
from tests.helpers.cifar import data, fails, write
from tests.helpers.prepare import prepare  # noqa: F401 - a fixture

CLASSES = {"flowers102": 102, "cars": 196}


def settings(name: str, directory, **values):
    return data(name, directory, **({"classes": CLASSES[name]} | values))


def load(name: str, directory, **values) -> Splits:
    return load_splits(settings(name, directory, **values))


@pytest.fixture(scope="module")
def all_flowers(tmp_path_factory):
    """The whole set, every photo the same grey one."""
    lists = REAL_IMAGES / "flowers-102"
    if not lists.exists():
        pytest.skip("needs the lists of Flowers-102 beside the checkout")
    root = tmp_path_factory.mktemp("flowers")
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for file in ("imagelabels.mat", "setid.mat"):
        shutil.copyfile(lists / file, folder / file)
    first = folder / "jpg" / "image_00001.jpg"
    Image.new("L", (8, 8), 128).save(first)
    for number in range(2, 8190):
        os.link(first, folder / "jpg" / f"image_{number:05d}.jpg")
    return root


@pytest.fixture
def flowers(all_flowers, tmp_path):
    shutil.copytree(all_flowers / "flowers-102", tmp_path / "flowers-102", copy_function=os.link)
    return tmp_path


@pytest.fixture
def cars(real_images):
    return real_images("stanford_cars_sub.tar")


def write_cars(root: Path, train: int = 196, test: int = 196) -> Path:
    """Stanford Cars with made photos, so many in each part, in the authors' layout with the test
    labels in devkit.
    """
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array([f"Car {n}" for n in range(196)], object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for part, count, file in (
        ("cars_train", train, "cars_train_annos"),
        ("cars_test", test, "cars_test_annos_withlabels"),
    ):
        (folder / part).mkdir()
        rows = np.array(
            [(n % 196 + 1, f"{n:05d}.jpg") for n in range(count)], [("class", "O"), ("fname", "O")]
        )
        savemat(folder / "devkit" / f"{file}.mat", {"annotations": rows})
        for n in range(count):
            Image.new("RGB", (12, 8), (n % 196, 0, 0)).save(folder / part / f"{n:05d}.jpg")
    return folder


def test_flowers_train_on_train_and_val_and_test_on_test(all_flowers):
    train, val = load("flowers102", all_flowers)
    assert (len(train), len(val)) == (2040, 6149)
    for ours, parts in ((train, ("train", "val")), (val, ("test",))):
        theirs = [
            torchvision_datasets.Flowers102(str(all_flowers), part) for part in parts
        ]  # which checks the MD5
        assert [ours.where(i) for i in range(len(ours))] == [
            str(file) for one in theirs for file in one._image_files
        ]
        assert ours.labels.tolist() == [label for one in theirs for label in one._labels]
    assert (
        set(Counter(train.labels.tolist()).values()) == {20} and train.classes[0] == "pink primrose"
    )
    image, label = train[0]
    assert (
        image.mode == "RGB"
        and image.getpixel((0, 0)) == (128, 128, 128)
        and label == train.labels[0]
    )
    assert count_samples(settings("flowers102", None)) == (2040, 6149)


def test_swapped_flowers_are_refused(flowers):
    from scipy.io import loadmat

    path = flowers / "flowers-102" / "setid.mat"
    ids = loadmat(path)
    path.unlink()
    savemat(path, {"trnid": ids["tstid"], "valid": ids["valid"], "tstid": ids["trnid"]})
    message = fails(settings("flowers102", flowers))
    assert "7,169 training images, Flowers-102 has 2,040" in message
    assert "1,020 validation images, Flowers-102 has 6,149" in message


def test_missing_photos_are_named_and_a_part_is_accepted_when_asked(flowers):
    for number in (6765, 6734, 6735):
        (flowers / "flowers-102" / "jpg" / f"image_{number:05d}.jpg").unlink()
    message = fails(settings("flowers102", flowers))
    # by the authors' lists 6765 is the first training image, the others the first two of the test
    assert "/jpg: 1 training images are missing: image_06765.jpg; complete it" in message
    assert "/jpg: 2 validation images are missing: image_06734.jpg, image_06735.jpg" in message
    train, val = load("flowers102", flowers, verify=False)
    assert (len(train), len(val)) == (2039, 6147) and train.absent == ["image_06765.jpg"]


def test_no_photo_at_all_and_missing_lists(flowers):
    folder = flowers / "flowers-102"
    shutil.rmtree(folder / "jpg")
    message = fails(settings("flowers102", flowers, verify=False))
    assert (
        "1 of 3 parts of Flowers-102 are missing: jpg; expected are" in message
        and "robots.ox.ac.uk" in message
    )
    assert str(folder / "setid.mat") in message and "\n" not in message
    (folder / "jpg").mkdir()
    assert "holds none of the images" in fails(settings("flowers102", flowers, verify=False))
    (folder / "setid.mat").unlink()
    (folder / "setid.mat").write_bytes(b"MATLAB, it says")
    assert "setid.mat: cannot be read as a Matlab file" in fails(settings("flowers102", flowers))
    (folder / "setid.mat").unlink()
    savemat(folder / "setid.mat", {"trnid": [8190], "valid": [1], "tstid": [2]})
    assert "setid.mat: names images 1 to 8190 of 8189" in fails(settings("flowers102", flowers))


def test_real_cars_are_read_as_torchvision_reads_them(cars):
    for ours, part in zip(load("cars", cars, verify=False), ("train", "test"), strict=True):
        theirs = torchvision_datasets.StanfordCars(str(cars), part)
        assert [(ours.where(i), ours.labels[i]) for i in range(len(ours))] == theirs._samples
        assert ours.classes == theirs.classes and len(ours.classes) == 196
        image, label = ours[len(ours) - 1]
        assert (
            np.array_equal(np.array(image), np.array(theirs[len(ours) - 1][0]))
            and label == theirs[len(ours) - 1][1]
        )


def test_cars_are_counted(cars):
    lines = fails(settings("cars", cars)).splitlines()
    assert (
        len(lines) == 2 and "cars_train: 784 training images, Stanford Cars has 8,144" in lines[0]
    )
    assert "392 validation images, Stanford Cars has 8,041" in lines[1]
    assert count_samples(settings("cars", None)) == (8144, 8041)


def test_cars_test_labels_may_lie_in_the_devkit_and_photos_a_folder_deeper(tmp_path):
    folder = write_cars(tmp_path)
    train, val = load("cars", tmp_path, verify=False)
    assert (
        (len(train), len(val)) == (196, 196) and val[195][1] == 195 and val[195][0].size == (12, 8)
    )
    (folder / "cars_train").rename(folder / "inner")
    (folder / "cars_train").mkdir()
    (folder / "inner").rename(folder / "cars_train" / "cars_train")
    assert load("cars", folder, verify=False).train[7][1] == 7


def test_cars_without_test_labels_name_the_file(tmp_path):
    folder = write_cars(tmp_path)
    labelled = folder / "devkit" / "cars_test_annos_withlabels.mat"
    labelled.unlink()
    message = fails(settings("cars", tmp_path, verify=False))
    assert "1 of 5 parts of Stanford Cars are missing: cars_test_annos_withlabels.mat" in message
    assert all(str(folder / part) in message for part in FILES) and "vision/issues/7545" in message
    savemat(labelled, {"annotations": np.array([("00000.jpg",)], [("fname", "O")])})
    assert "cars_test_annos_withlabels.mat: has no labels" in fails(
        settings("cars", tmp_path, verify=False)
    )
    savemat(
        labelled, {"annotations": np.array([(197, "00000.jpg")], [("class", "O"), ("fname", "O")])}
    )
    assert "has labels from 197 to 197 for 196 classes" in fails(
        settings("cars", tmp_path, verify=False)
    )
    savemat(labelled, {"other": [1]})
    assert "has no entry 'annotations'" in fails(settings("cars", tmp_path, verify=False))


def test_prepare_finds_flowers_whole_then_each_fault(prepare, flowers):
    code, out, errors = prepare("flowers102", flowers, "--workers", 0)
    assert (
        (code, errors) == (0, [])
        and "8,189 images decoded; no problems" in out
        and "train: 100%" not in out
    )
    folder = flowers / "flowers-102"
    (folder / "jpg" / "image_06765.jpg").unlink()
    (folder / "jpg" / "image_00002.jpg").unlink()
    (folder / "jpg" / "image_00002.jpg").write_bytes(b"\xff\xd8 no JPEG")
    changed = (folder / "setid.mat").read_bytes().replace(b"MATLAB", b"Matlab")
    (folder / "setid.mat").unlink()  # a hard link to another test's
    (folder / "setid.mat").write_bytes(changed)
    code, out, errors = prepare("flowers102", flowers, "--workers", 0)
    assert code == 2 and len(errors) == 3 and "8,188 images decoded; 3 problems" in out
    assert "setid.mat: differs from the official file (MD5 " in errors[0]
    assert "1 training images are missing: image_06765.jpg" in errors[1]
    assert "image_00002.jpg: cannot be read as an image" in errors[2]


def test_prepare_counts_cifar_and_cars(prepare, tmp_path):
    write(tmp_path, "cifar100", rows=100)
    code, out, errors = prepare("cifar100", tmp_path, "--quick")
    assert (
        code == 2
        and len(errors) == 5
        and out.endswith("200 images counted, not decoded; 5 problems\n")
    )
    assert [line.rpartition("/")[2].split(":")[0] for line in errors[:3]] == [
        "train",
        "test",
        "meta",
    ]
    assert "100 training images, CIFAR-100 has 50,000" in errors[3]
    write_cars(tmp_path)
    code, out, errors = prepare("cars", tmp_path, "--workers", 0)
    assert code == 2 and len(errors) == 2 and "392 images decoded; 2 problems" in out


def test_prepare_downloads_through_torchvision_and_not_cars(prepare, tmp_path, monkeypatch):
    asked = []

    def fetch(root, download):
        asked.append((root, download))
        write(root)

    monkeypatch.setitem(READERS, "cifar10", READERS["cifar10"]._replace(fetch=fetch))
    code, out, _ = prepare("cifar10", tmp_path, "--download", "--quick")
    assert asked == [(tmp_path, True)] and code == 2 and "120 images counted" in out

    def refuse(root, download):
        raise RuntimeError("File not found or\ncorrupted.")

    monkeypatch.setitem(READERS, "cifar10", READERS["cifar10"]._replace(fetch=refuse))
    _, _, errors = prepare("cifar10", tmp_path, "--download")
    assert (
        len(errors) == 1
        and "CIFAR-10 cannot be fetched (File not found or corrupted.); fetch it by hand"
        in errors[0]
    )
    _, _, errors = prepare("cars", tmp_path, "--download")
    assert (
        len(errors) == 1
        and "the official source of Stanford Cars is gone; it comes from Kaggle's" in errors[0]
    )


def test_official_md5_are_those_of_torchvision():
    known = torchvision_datasets.Flowers102._file_dict
    assert READERS["flowers102"].md5 == dict([known["label"], known["setid"]])
    assert set(READERS["cifar10"].md5) == {f"data_batch_{n}" for n in range(1, 6)} | {
        "test_batch",
        "batches.meta",
    }
    assert set(READERS["cifar100"].md5) == {"train", "test", "meta"} == set(cifar.md5("cifar100"))
