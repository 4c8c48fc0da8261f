"""Exported crops, class names, and what of a recipe is not published."""

from PIL import Image
from timm.data import ImageNetInfo

from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results import export


def test_the_place_of_the_data_stays_at_home(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text('base: quickstart\ndata: {name: folder, dir: "/home/jane/photos"}\n')
    file.write_text(explain(load_recipe(str(file))))
    assert "jane" in file.read_text()
    file.write_text(export.shared_recipe(file))
    assert "jane" not in file.read_text() and load_recipe(str(file)).data.dir is None


def test_class_names_are_written_where_they_are_known(tmp_path):
    assert export.label_names(load_recipe("vit_s_400ep")) == ImageNetInfo().label_names()
    assert export.label_names(load_recipe("quickstart")) is None
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "1.png")
    photos = load_recipe("folder_vit_ti", ["data.classes=2"], str(tmp_path))
    assert export.label_names(photos) == ["cat", "dog"]
    assert (
        export.label_names(load_recipe("folder_vit_ti", ["data.classes=2"], str(tmp_path / "gone")))
        is None
    )
