"""Folders of one's own: every layout gives the same images, data.split moves no other image, and
each mistake is one line.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deit_tract.common.errors import UserError
from deit_tract.data.sets.load import count_classes, load_splits, load_validation
from deit_tract.data.sets.split import is_held_out
from deit_tract.recipe.settings.recipe import Data

CLASSES = ("n01", "n02", "n10")


def data(directory: Path, **values) -> Data:
    settings = {"name": "folder", "image_size": 8, "classes": None, "dir": str(directory)}
    return Data(**settings | values)


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def parts(tmp_path) -> Path:
    """DIR/train/CLASS/IMAGE of 4 images each, DIR/val/CLASS/IMAGE of 2."""
    for number, name in enumerate(CLASSES):
        for index in range(4):
            write(tmp_path / f"dir/train/{name}/{index}.png", 10 * number + index)
        for index in range(2):
            write(tmp_path / f"dir/val/{name}/v{number}{index}.png", 100 + 10 * number + index)
    return tmp_path / "dir"


def test_half_a_disk_is_refused_after_a_look(tmp_path, monkeypatch):
    monkeypatch.setattr("deit_tract.data.sets.images.MOST_OTHERS", 20)
    monkeypatch.setattr("deit_tract.data.sets.images.make_dataset", None)  # walks all of it
    write(tmp_path / "a/image.png", 1)
    for number in range(20):
        (tmp_path / f"b/{number}/deeper").mkdir(parents=True)
    with pytest.raises(UserError, match="b: no image among the first 20 files; give a folder"):
        load_splits(data(tmp_path, split=0.5))


def tiny_imagenet(parts: Path) -> Path:
    root = parts.parent / "tiny"
    lines = []
    for file in sorted((parts / "train").rglob("*.png")):
        place = root / "train" / file.parent.name / "images" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        (place.parent.parent / "boxes.txt").touch()
    (root / "val/images").mkdir(parents=True)
    for file in sorted((parts / "val").rglob("*.png"), reverse=True):
        shutil.copy(file, root / "val/images")
        lines.append(f"{file.name}\t{file.parent.name}\t0\t0\t5\t5\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(CLASSES)))
    return root


def rows_of(parts: Path, part: str) -> list[tuple[str, str]]:
    files = sorted((parts / part).rglob("*.png"), reverse=True)
    return [(str(file.relative_to(parts.parent)), file.parent.name) for file in files]


def two_csvs(parts: Path) -> Path:
    for part in ("train", "val"):
        lines = ["path,label", *(",".join(row) for row in rows_of(parts, part))]
        (parts.parent / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return parts.parent


def one_csv(parts: Path) -> Path:
    """As a spreadsheet writes it: semicolons, a byte order mark, names of its own."""
    lines = ["Class;Split;Filename"]
    for part, split in (("train", "train"), ("val", "test")):
        lines += [f"{label};{split};{path}" for path, label in rows_of(parts, part)]
    (parts.parent / "photos.csv").write_text("\n".join(lines), "utf-8-sig")
    return parts.parent / "photos.csv"


def content(directory: Path, **values) -> list:
    """All labels and pixels, in order."""
    splits = load_splits(data(directory, **values))
    read = [[(np.array(image).tobytes(), label) for image, label in part] for part in splits]
    return [splits.train.classes, *read]


@pytest.mark.parametrize("layout", [tiny_imagenet, two_csvs, one_csv])
def test_layouts_give_the_same_images_and_labels_in_one_order(parts, layout):
    directory = layout(parts)
    assert content(directory) == content(parts)
    assert count_classes(data(directory)) == 3
    assert len(load_validation(data(directory, classes=3))) == 6


def test_one_level_of_class_folders_needs_and_has_a_split(parts):
    flat = parts / "train"
    with pytest.raises(UserError, match=r"has no folder val.*data\.split=0\.1"):
        load_splits(data(flat))
    shutil.copytree(flat, parts.parent / "only/train")
    one, other = (content(place, split=0.4) for place in (flat, parts.parent / "only"))
    assert one == other and len(one[1]) + len(one[2]) == 12 and 0 < len(one[2]) < 12
    assert content(parts, split=0.4) == content(parts), "a validation folder comes first"


def test_the_split_is_a_function_of_seed_and_name():
    names = [f"dog/{index}.jpg" for index in range(2000)]
    chosen = {name for name in names if is_held_out(name, 0.1, 0)}
    assert 150 < len(chosen) < 250
    assert chosen < {name for name in names if is_held_out(name, 0.2, 0)}
    assert chosen != {name for name in names if is_held_out(name, 0.1, 1)}
    # for good: runs resume and models are evaluated on what was held out
    assert [index for index in range(60) if is_held_out(f"cat/{index}.jpg", 0.1, 0)] == HELD_OUT


HELD_OUT = [2, 16, 20, 25, 43, 45, 47, 49, 54]


def test_adding_images_and_classes_moves_no_other(parts):
    flat = parts / "train"

    def held_out() -> set[str]:
        val = load_splits(data(flat, split=0.4)).val
        return {val.name(index) for index in range(len(val))}

    before = held_out()
    write(flat / "n05/0.png", 7)
    write(flat / "n01/00.png", 8)
    assert held_out() - {"n05/0.png", "n01/00.png"} == before


def fails(directory: Path, **values) -> str:
    with pytest.raises(UserError) as caught:
        load_splits(data(directory, **values))
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["dir/train/n01/0.png,n01"], "train.csv:1: no column 'path' in the header; begin it"),
        (["path,label", "dir/train/n01/0.png,"], "train.csv:2: no label;"),
        (["path,label", "a.png,n01", "./a.png,n02"], "'a.png' is listed in"),
        (["path,label", "dir/train/n01/0.png,n01"], "'n10' is not a label of the training images"),
        (["path,label", "gone.png,n01", "x.png,n02", "y.png,n10"], "3 files not there: gone.png,"),
        (["path,label", "a,n01", "b,n02", "c,n10", "d,n11"], "no validation image of 1 class: n11"),
        (["path,label"], "train.csv: lists no images"),
    ],
)
def test_mistakes_in_a_csv_are_one_line(parts, lines, message):
    directory = two_csvs(parts)
    (directory / "train.csv").write_text("\n".join(lines))
    found = fails(directory)
    assert message in found and "\n" not in found


def test_mistakes_in_a_split_column_and_in_tiny_imagenets_list(parts):
    file = one_csv(parts)
    text = file.read_text("utf-8-sig")
    file.write_text(text.replace(";test;", ";later;", 1))
    assert "'later' is not a split; write one of train, val" in fails(file)
    file.write_text(text.replace(";test;", ";train;"))
    assert "no row with split val or validation or test" in fails(file)
    file.write_text(text.replace(";Split;", ";Other;"))
    assert "it has no column split; add one, or set data.split=0.1" in fails(file)
    root = tiny_imagenet(parts)
    annotations = root / "val/val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace("\tn01\t", "\tn99\t"))
    assert "1 label not in wnids.txt: n99" in fails(root)
    annotations.write_text(text + text.splitlines()[0])
    assert "val_annotations.txt:7: 'v21.png' is listed twice" in fails(root)
    annotations.write_text(text.replace("v21.png", "v99.png"))
    assert "1 image of val_annotations.txt not there: v99.png" in fails(root)


def test_the_folder_above_or_a_split_without_images_is_one_line(parts):
    assert f"give --data-dir {parts}" in fails(parts.parent)
    assert "holds out none of 12 images" in fails(parts / "train", split=1e-9)
    assert "leaves no training image of n01" in fails(parts / "train", split=1 - 1e-9)
