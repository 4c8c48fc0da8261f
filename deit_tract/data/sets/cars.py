"""Stanford Cars (Krause et al. 2013): whole photos, not cropped to their boxes.

The labels of its test part were published later and lie in either of two places.
"""

from collections.abc import Sequence

from deit_tract.common.errors import UserError
from deit_tract.data.sets.images import ListedFiles, mode_of
from deit_tract.data.sets.matlab import labels_from_one, read_matlab
from deit_tract.data.sets.official import folder_of, need_parts
from deit_tract.recipe.settings.recipe import Data

TEST_LABELS = "cars_test_annos_withlabels.mat"  # where torchvision has it
FILES = ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat")


def read_cars(data: Data, parts: Sequence[str]) -> list[ListedFiles]:
    """Read parts of the set in the order of its lists. Raises UserError on other files."""
    folder = folder_of(data.name, data.dir)
    places = (TEST_LABELS, f"devkit/{TEST_LABELS}")
    test = next((place for place in places if (folder / place).exists()), TEST_LABELS)
    need_parts(data.name, folder, [*FILES, test])
    names = read_matlab(folder / "devkit/cars_meta.mat", "class_names")
    classes = [str(name) for name in names]
    lists = {
        "train": ("cars_train", folder / "devkit/cars_train_annos.mat"),
        "val": ("cars_test", folder / test),
    }
    splits = []
    for photos, path in map(lists.get, parts):
        rows = read_matlab(path, "annotations")
        if not {"class", "fname"} <= set(rows.dtype.names or ()):
            raise UserError(path, "has no labels", f"{TEST_LABELS} is the file with labels")
        labels = labels_from_one(path, rows["class"], len(classes))
        inner = folder / photos / photos  # as Kaggle's archive unpacks
        root = inner if inner.is_dir() else folder / photos
        splits.append(ListedFiles(root, rows["fname"].tolist(), labels, classes, mode_of(data)))
    return splits
