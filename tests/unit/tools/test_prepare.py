"""tools/prepare.py: what it finds in a data set, sorting ImageNet's validation images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_tract.common.errors import UserError
from deit_tract.data.sets import imagenet_labels
from tests.helpers.prepare import (
    OFFICIAL,
    prepare,  # noqa: F401 - a fixture
    tiny,  # noqa: F401 - a fixture
)


def lines(tiny: Path, *more: str) -> Path:
    """A label file; images 1, 3, 5 are of the second class."""
    file = tiny / "labels.txt"
    text = [f"ILSVRC2012_val_{n:08d}.JPEG {OFFICIAL[n % 2]}" for n in range(1, 7)]
    file.write_text("\n".join([*text, *more, ""]))
    return file


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_validation_is_sorted_by_class_without_loss(prepare, tiny):
    before = tree(tiny / "val")
    code, out, errors = prepare("imagenet", tiny, "--quick", "--fix-val", lines(tiny))
    assert f"{tiny}/val: 6 images moved into class folders\n" in out
    moved = {
        f"{OFFICIAL[n % 2]}/ILSVRC2012_val_{n:08d}.JPEG": before[f"ILSVRC2012_val_{n:08d}.JPEG"]
        for n in range(1, 7)
    }
    assert tree(tiny / "val") == moved
    assert code == 2 and len(errors) == 6  # it is a part of ImageNet alone
    assert (
        f"{tiny}/train: 80 images of 2 classes, 40 each\n"
        f"{tiny}/val: 6 images of 2 classes, 3 each\n" in out
    )
    assert out.endswith(f"imagenet {tiny}: 86 images counted, not decoded; 6 problems\n")


def test_every_broken_image_is_listed_and_the_exit_code_is_two(prepare, tiny):
    imagenet_labels.sort_by_class(tiny / "val", imagenet_labels.read_labels(lines(tiny)))
    assert prepare("folder", tiny, "--workers", 2)[0] == 0
    bad = [tiny / "train" / OFFICIAL[0] / f"{OFFICIAL[0]}_{n}.JPEG" for n in (12, 3)]
    bad += [tiny / "val" / OFFICIAL[1] / "ILSVRC2012_val_00000005.JPEG"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:150])
    for workers in (0, 2):
        code, out, errors = prepare("folder", tiny, "--workers", workers)
        assert code == 2 and [line.split(":")[1].strip() for line in errors] == [
            str(path) for path in bad
        ]
        assert all("cannot be read as an image" in line for line in errors)
        assert out.splitlines()[-1] == f"folder {tiny}: 86 images decoded; 3 problems"
    assert prepare("folder", tiny, "--quick")[0] == 0


def test_classes_that_differ_are_a_problem_among_others(prepare, tiny):
    imagenet_labels.sort_by_class(tiny / "val", imagenet_labels.read_labels(lines(tiny)))
    (tiny / "val" / OFFICIAL[1]).rename(tiny / "val" / "wolf")
    code, out, errors = prepare("folder", tiny, "--workers", 0)
    assert (
        code == 2
        and len(errors) == 1
        and "classes differ" in errors[0]
        and "86 images decoded; 1 problem\n" in out
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: (t / "val" / "extra.JPEG").write_bytes(b""),
            "val/extra.JPEG: has no label; nothing was moved",
        ),
        (
            lambda t: lines(t, "more.JPEG n00000001"),
            "val/more.JPEG: n00000001 is not a synset of ImageNet-1k",
        ),
        (
            lambda t: (t / "val" / OFFICIAL[0]).mkdir(),
            "is in n01440764/ too; remove one of the two",
        ),
    ],
)
def test_nothing_is_moved_where_anything_is_wrong(tiny, change, message):
    labels = lines(tiny)
    change(tiny)
    if "more" in message:
        (tiny / "val" / "more.JPEG").write_bytes(b"")
    if "too" in message:
        (tiny / "val" / OFFICIAL[0] / "ILSVRC2012_val_00000004.JPEG").write_bytes(b"another")
    before = tree(tiny / "val")
    with pytest.raises(UserError, match=message):
        imagenet_labels.sort_by_class(tiny / "val", imagenet_labels.read_labels(labels))
    assert tree(tiny / "val") == before


def test_an_interrupted_sorting_goes_on(tiny, monkeypatch):
    labels, before = imagenet_labels.read_labels(lines(tiny)), tree(tiny / "val")
    rename = Path.rename
    count = iter(range(9))

    def three_times(old, new):
        if next(count) == 3:
            raise KeyboardInterrupt
        return rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", three_times)
        with pytest.raises(KeyboardInterrupt):
            imagenet_labels.sort_by_class(tiny / "val", labels)
    assert imagenet_labels.sort_by_class(tiny / "val", labels) == 3
    assert imagenet_labels.sort_by_class(tiny / "val", labels) == 0
    assert sorted(tree(tiny / "val").values()) == sorted(before.values())
    assert all(path.count("/") == 1 for path in tree(tiny / "val"))


def devkit(folder: Path, numbers: list[int]) -> Path:
    """The devkit's two files as torchvision reads them; its ids count the classes in reverse."""
    from scipy.io import savemat

    fields = [
        ("ILSVRC2012_ID", "i4"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "i4"),
    ]
    synsets = np.array([(i + 1, name, "", "", 0) for i, name in enumerate(OFFICIAL[::-1])], fields)
    inner = np.array([(1001, "n00001740", "entity", "", 2)], fields)
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data" / "meta.mat", {"synsets": np.concatenate([synsets, inner])})
    truth = folder / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{number}\n" for number in numbers))
    return truth


def test_the_devkits_ground_truth_is_read_through_its_own_numbers(tmp_path):
    truth = devkit(tmp_path / "devkit", [1, 1000, 999])
    expected = [OFFICIAL[-1], OFFICIAL[0], OFFICIAL[1]]
    for given in (truth, truth.parent, truth.parent.parent):
        labels = imagenet_labels.read_labels(given)
        assert (
            list(labels.values()) == expected and list(labels)[2] == "ILSVRC2012_val_00000003.JPEG"
        )
    (truth.parent / "meta.mat").unlink()
    with pytest.raises(
        UserError,
        match=r"is not the ILSVRC2012 devkit .*; needs ILSVRC2012_validation_ground_truth",
    ):
        imagenet_labels.read_labels(truth)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "x.JPEG 65",
            "labels.txt:7: 'x.JPEG 65'; a line is `filename synset`, as x.JPEG n01440764",
        ),
        (
            "ILSVRC2012_val_00000001.JPEG n01440764",
            "labels.txt:7: ILSVRC2012_val_00000001.JPEG has two synsets",
        ),
    ],
)
def test_a_label_file_that_says_something_else(tiny, line, message):
    with pytest.raises(UserError) as caught:
        imagenet_labels.read_labels(lines(tiny, line))
    assert message in str(caught.value)


def test_mistakes_on_the_command_line(prepare, tiny, tmp_path):
    for arguments, message in (
        ((), "the following arguments are required: SET"),
        (("cifar", tiny), "invalid choice: 'cifar'"),
        (("imagenet", tmp_path / "none"), "none: no such folder; give DIR with train/ and val/"),
        (
            ("imagenet", tiny, "--workers", "-1"),
            "--workers: '-1' is not a whole number from 0 to 1,024",
        ),
        (("folder", tiny, "--fix-val", "x"), "unrecognized arguments: --fix-val x"),
        (("imagenet", tiny, "--fix-val", tmp_path / "none"), "none: cannot be read"),
    ):
        code, _, errors = prepare(*arguments)
        assert (
            code == 2
            and len(errors) == 1
            and errors[0].startswith("error: ")
            and message in errors[0]
        ), errors


def test_ones_own_images_are_counted_and_oddities_are_remarked(prepare, tmp_path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for index in range(20):
            Image.new("RGB", (70, 80), (number, index, 0)).save(tmp_path / name / f"{index}.png")
    Image.new("L", (300, 40)).save(tmp_path / "cat/wide.png")
    shutil.copy(tmp_path / "cat/0.png", tmp_path / "dog/same.png")
    shutil.copy(tmp_path / "cat/0.png", tmp_path / "dog/again.png")
    shutil.copy(tmp_path / "cat/1.png", tmp_path / "cat/one.png")
    code, out, errors = prepare("folder", tmp_path, "--workers", 0)
    lines = out.splitlines()
    assert (code, errors) == (0, [])
    assert lines[2:4] == [
        "layout: class folders",
        "no validation part: data.split=0.1 holds out 6 images",
    ]
    assert [line.split() for line in lines[4:7]] == [
        ["train", "val", "class"],
        ["20", "2", "cat"],
        ["18", "4", "dog"],
    ]
    once = "image there more than once, byte for byte,"
    assert lines[7:-2] == [
        "remark: shorter sides of 40 to 70 px, median 70 px",
        f"remark: 1 image below 64 px: {tmp_path}/cat/wide.png",
        f"remark: 1 image over 4 times as long as wide: {tmp_path}/cat/wide.png",
        f"remark: 1 image greyscale: {tmp_path}/cat/wide.png",
        f"remark: 1 {once} with different classes: cat/0.png = dog/again.png",
        f"remark: 1 {once} in one part: cat/1.png = cat/one.png",
    ]
    assert lines[-1].startswith("next: python finetune.py --recipe folder_finetune ")
    (tmp_path / "dog/3.png").write_bytes(b"no image")
    code, out, errors = prepare("folder", tmp_path, "--workers", 0)
    assert code == 2 and len(errors) == 1 and "next:" not in out
