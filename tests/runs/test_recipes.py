"""Every shipped recipe: loads, says what it is, and runs two steps on synthetic data (one of a
length will do).
"""

import pytest

from deit_tract.recipe.describe import leaves
from deit_tract.recipe.resolve import load_recipe
from tests.helpers.recipes import NAMES
from tests.helpers.runs import losses, short, train


def computation(name: str) -> str:
    """What two steps of a recipe do: all of it but its length, rates, and how often it looks up."""
    recipe = load_recipe(name)
    apart = (
        "about",
        "data.name",
        "data.dir",
        "schedule",
        "evaluate",
        "save",
        "log",
        "expect",
        "optim.lr",
    )
    values = {".".join(path): value for path, (value, _) in leaves(recipe).items()}
    return str({key: value for key, value in values.items() if not key.startswith(apart)})


# test_cifar_nets.py has those of Table 1
OTHERS = [name for name in NAMES if not name.startswith("table1_")]
DIFFERENT = list({computation(name): name for name in reversed(OTHERS)}.values())
SMALLER = {
    "vit_cifar": ["depth=1"],
    "resnet18_cifar": ["stem=4", "widths=[4,4,4,4]"],
    "swin_tiny_patch4_window7_224": ["depths=[1,1,1,1]"],
    "swin_small_patch4_window7_224": ["depths=[1,1,1,1]"],
    "pvt_v2_b2_li": ["depths=[1,1,1,1]"],
}  # seconds in place of minutes


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_two_steps_on_synthetic_data(name, tmp_path):
    recipe = load_recipe(name)
    lanes = min(recipe.batch.lanes, 2)
    overrides = short(
        2,
        "data.name=synthetic",
        f"batch.size={2 * lanes}",
        f"batch.lanes={lanes}",
        "data.workers=0",
    )
    if recipe.task == "detect":
        overrides += [
            "model.args.width=8",
            "model.args.fc=32",
            "data.image_size=96",
            "detect.anchor_sizes=[16, 32]",
        ]
    elif recipe.data.name == "imagenet" and recipe.model.name.startswith("resnet"):
        overrides += ["data.image_size=32", "model.args.channels=[4,4,4,4]"]
    elif recipe.data.image_size > 64 and recipe.model.name not in SMALLER:
        overrides.append("model.args.depth=1")  # twelve would take minutes
    if recipe.model.name is None:  # it and the split belong to data of one's own
        overrides += ["model.name=test_vit", "data.classes=4", "data.split=null"]
    overrides += [f"model.args.{setting}" for setting in SMALLER.get(recipe.model.name or "", ())]
    records = train(tmp_path, *overrides, recipe=name)
    assert len(losses(records)) == 2 and recipe.headline in records[-1]
