"""CIFAR's pickles: official rows and order, text and bytes keys, nothing run from a file, mistakes
named.
"""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from deit_tract.data.sets.load import load_splits
from deit_tract.plan.plan import count_samples
from tests.helpers.cifar import data, fails, write


def test_the_real_files_are_read_as_torchvision_reads_them(real_images, monkeypatch):
    root = real_images("cifar10_exact1017.tar.gz")
    train, val = load_splits(data("cifar10", root, verify=False))
    assert (len(train), len(val)) == (5 * 1017, 1017)
    assert " ".join(train.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision_datasets.cifar, "check_integrity", lambda *_: True)
    for ours, part in ((train, True), (val, False)):
        theirs = torchvision_datasets.CIFAR10(str(root), train=part)
        assert ours.labels.tolist() == theirs.targets and (ours.pixels == theirs.data).all()
        image, label = ours[1016]
        assert (np.array(image) == np.array(theirs[1016][0])).all() and label == theirs[1016][1]


def test_verify_wants_the_official_counts(real_images):
    root = real_images("cifar10_exact1017.tar.gz")
    lines = fails(data("cifar10", root)).splitlines()
    assert (
        len(lines) == 2
        and "data_batch_1 to data_batch_5: 5,085 training images, CIFAR-10 has 50,000" in lines[0]
    )
    assert lines[1].endswith(
        "1,017 validation images, CIFAR-10 has 10,000; "
        "complete it, or set data.verify=false for a part"
    )
    assert "data.classes: 7, but the data has 10" in fails(
        data("cifar10", root, verify=False, classes=7)
    )


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_text_and_bytes_keys_of_every_protocol(tmp_path, name, key, protocol):
    train, val = load_splits(data(name, write(tmp_path, name, 100, protocol, key), verify=False))
    assert len(train) == (500 if name == "cifar10" else 100) and len(val) == 100
    assert train.classes[3] == "class 3" and train[13][1] == (3 if name == "cifar10" else 13)
    first = np.random.default_rng(0).integers(0, 256, (100, 3072), dtype=np.uint8)[0]
    assert (
        np.array(train[0][0])[0, 1] == first[[1, 1025, 2049]]
    ).all()  # row 0, column 1: red, green, blue


def test_the_folder_itself_is_taken_too_and_grey_is_grey(tmp_path):
    write(tmp_path)
    settings = {"verify": False, "channels": 1, "mean": [0.5], "std": [0.5]}
    train = load_splits(data("cifar10", tmp_path / "cifar-10-batches-py", **settings)).train
    assert len(train) == 100 and train[0][0].mode == "L"


class _Harm:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path) / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": _Harm(), "labels": []}))
    message = fails(data("cifar10", tmp_path, verify=False))
    assert (
        message.startswith(f"{path}: cannot be read (it would call ")
        and not Path("harmed").exists()
    )
    pickle.loads(path.read_bytes())
    assert Path("harmed").exists()  # as the test would see it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read (Ran out of input)"),
        (b"\x80\x02}q\x00(", "cannot be read"),
        (pickle.dumps([1]), "is not a file of CIFAR (it lacks data, labels)"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}),
            "(it lacks labels)",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
            "shape (2, 3072) for 1 labels",
        ),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}), "float64 array"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
            "labels from 10 to 10 for 10 classes",
        ),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}),
            "is not a file of CIFAR",
        ),
    ],
)
def test_a_file_that_is_none_of_cifars_is_named(tmp_path, content, message):
    path = write(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(content)
    error = fails(data("cifar10", tmp_path, verify=False))
    assert error.startswith(f"{path}: ") and message in error and "\n" not in error


def test_missing_files_are_listed_with_where_they_come_from(tmp_path):
    folder = write(tmp_path) / "cifar-10-batches-py"
    (folder / "data_batch_2").unlink()
    message = fails(data("cifar10", tmp_path))
    assert "1 of 7 parts of CIFAR-10 are missing: data_batch_2; expected are" in message
    assert all(
        str(folder / file) in message for file in ("data_batch_1", "test_batch", "batches.meta")
    )
    assert "cs.toronto.edu" in message and "\n" not in message
    shutil.rmtree(folder)
    assert "7 of 7 parts" in fails(data("cifar10", tmp_path))
    assert "give --data-dir DIR with cifar-100-python/ inside" in fails(
        data("cifar100", tmp_path / "x")
    )
    assert "give --data-dir DIR" in fails(data("cifar100", None))


def test_class_folders_are_for_the_folder_reader(tmp_path):
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / part / kind / "0000.jpg")
    assert fails(data("cifar10", tmp_path)).endswith(
        "(train/CLASS, test/CLASS) set data.name=folder"
    )
    assert len(load_splits(data("folder", tmp_path, classes=2)).val) == 2


def test_the_plan_knows_the_counts_without_data():
    assert count_samples(data("cifar10", None)) == (50_000, 10_000)
    assert count_samples(data("cifar100", None)) == (50_000, 10_000)
