"""The data sets by name: what is known of each before any image is opened.

The row of the same name in data/sets/load.py says which code reads it.
"""

from typing import NamedTuple


class DataSet(NamedTuple):
    """A set as its authors published it; None is what only a look at the images can tell."""

    title: str
    train: int | None = None  # images
    val: int | None = None
    classes: int | None = None
    folder: str = ""  # where it lies below --data-dir, as torchvision calls it
    source: str = ""  # where a person gets it
    tasks: tuple[str, ...] = ("classify",)
    on_disk: bool = True  # else it is bundled or drawn, and needs no --data-dir


_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_CARS = (
    "Kaggle's jessicali9530/stanford-cars-dataset and the .mat files that "
    "https://github.com/pytorch/vision/issues/7545 names (Stanford's own page is gone since 2023)"
)
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"

DATASETS = {
    "cars": DataSet("Stanford Cars", 8_144, 8_041, 196, "stanford_cars", _CARS),
    "cifar10": DataSet("CIFAR-10", 50_000, 10_000, 10, "cifar-10-batches-py", _CIFAR),
    "cifar100": DataSet("CIFAR-100", 50_000, 10_000, 100, "cifar-100-python", _CIFAR),
    "digits": DataSet("scikit-learn's digits", 1_437, 360, 10, on_disk=False),
    "flowers102": DataSet("Flowers-102", 2_040, 6_149, 102, "flowers-102", _FLOWERS),
    "folder": DataSet("class folders"),
    "imagenet": DataSet("ImageNet", 1_281_167, 50_000, 1_000),
    "imagenet_v2": DataSet("ImageNet-V2", 0, 10_000, 1_000),
    "synthetic": DataSet("drawn images", tasks=("classify", "detect"), on_disk=False),
    "voc": DataSet("photos in VOC's layout", tasks=("detect",)),
    "voc2007": DataSet("PASCAL VOC2007", 5_011, 4_952, 20, source=_VOC, tasks=("detect",)),
}
TRAINABLE = tuple(name for name, facts in DATASETS.items() if facts.train != 0)


def names_for(task: str) -> list[str]:
    """Return the names of the data sets that a task can train on."""
    return [name for name in TRAINABLE if task in DATASETS[name].tasks]
