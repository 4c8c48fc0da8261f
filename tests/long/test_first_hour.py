"""From a clone to predictions on new photos and a model that timm loads, with the commands of
docs/your_photos.md word for word; only --set makes them short.
"""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from deit_tract.data.sets.matlab import read_matlab
from tests.helpers import ROOT
from tests.helpers.processes import environment, sets

PAGE = (ROOT / "docs/your_photos.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python ")]
SHORT = [
    "schedule.epochs=null",
    "schedule.steps=2",
    "schedule.warmup_epochs=null",
    "schedule.warmup_steps=1",
    "data.image_size=32",
    "data.workers=0",
    "batch.size=16",
]
CHECK, TRAIN, PREDICT, EXPORT = "prepare.py", "--data-dir photos", "--csv", "export.py"


@pytest.fixture
def clone(tmp_path):
    """What a clone has: the files that git knows."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    files = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, files.stdout.split("\0")):
        place = tmp_path / "clone" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place)
    return tmp_path / "clone"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of the hub with the page's model, its weights drawn: nothing is downloaded."""
    [name] = set(re.findall(r"--checkpoint timm:(\S+)", PAGE))
    home = tmp_path_factory.mktemp("hub")
    repository = f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    snapshot = home / "hub" / repository / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0")
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), snapshot / "model.safetensors")
    return home


def run(clone: Path, hub: Path, command: str) -> str:
    """Run a command of the page as a shell does, in the clone. Returns what it printed."""
    first = str(Path(sys.executable).parent)
    more = {"PATH": f"{first}:{os.environ['PATH']}", "PYTHONPATH": "", "HF_HOME": str(hub)}
    if "finetune.py" in command:
        command = shlex.join([*shlex.split(command), *sets(SHORT)])
    env = environment(**more, HF_HUB_OFFLINE="1")
    done = subprocess.run(
        command, shell=True, cwd=clone, env=env, capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}\n{said}"
    assert "Traceback" not in said and "Warning" not in said, said
    return said


def cars(folder: Path, clone: Path) -> None:
    """The first 20 classes as class folders, and six new photos."""
    root = folder / "stanford_cars"
    names = read_matlab(root / "devkit" / "cars_meta.mat", "class_names")
    rows = read_matlab(root / "devkit" / "cars_train_annos.mat", "annotations")
    for label, name in zip(rows["class"], rows["fname"], strict=True):
        if label <= 20:
            place = clone / "photos" / names[int(label) - 1]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "cars_train" / str(name), place)
    (clone / "new_photos").mkdir()
    for photo in sorted((root / "cars_test").iterdir())[:6]:
        shutil.copy(photo, clone / "new_photos")


def tiny_imagenet(folder: Path, clone: Path) -> None:
    """Ten classes in two parts; six of the validation images are new, too."""
    for part in ("train", "val"):
        for place in sorted((folder / part).iterdir())[:10]:
            shutil.copytree(place, clone / "photos" / part / place.name)
    (clone / "new_photos").mkdir()
    for number, photo in enumerate(sorted((clone / "photos/val").glob("*/*"))[::17]):
        shutil.copy(photo, clone / "new_photos" / f"{number}.jpg")


def test_cars_with_every_command_of_the_page(real_images, clone, hub):
    cars(real_images("stanford_cars_sub.tar"), clone)
    said = {command: run(clone, hub, command) for command in COMMANDS}
    assert len(said) == 8
    checked = next(text for command, text in said.items() if CHECK in command)
    [printed] = [block for block in BLOCKS if "layout: class folders" in block]
    for line in printed.splitlines():
        assert line == "..." or line in checked
    assert len(list((clone / "seen").iterdir())) == 6
    loads_with_the_predictions(clone)


def test_tiny_imagenet_in_two_parts(real_images, clone, hub):
    tiny_imagenet(real_images("tinyimagenet_sub.tar.gz"), clone)
    for word in (TRAIN, PREDICT, EXPORT):
        [command] = [one for one in COMMANDS if word in one and "--plan" not in one]
        run(clone, hub, command)
    loads_with_the_predictions(clone)


def loads_with_the_predictions(clone: Path) -> None:
    """The exported model, loaded by timm alone, says what predictions.csv has."""
    photos = clone / "photos"
    if (photos / "train").is_dir():
        photos = photos / "train"
    model = timm.create_model(f"local-dir:{clone}/exported/photos", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == sorted(place.name for place in photos.iterdir())
    transform = create_transform(**resolve_data_config({}, model=model))
    with (clone / "predictions.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert len({row["image"] for row in rows}) >= 6
    for name, best in groupby(rows, key=lambda row: row["image"]):
        image = transform(Image.open(clone / name).convert("RGB"))
        with torch.no_grad():
            ours = model(image[None]).softmax(1)[0]
        for row in best:
            # the run's evaluation is in bf16
            assert float(row["probability"]) == pytest.approx(
                float(ours[int(row["class"])]), abs=0.02
            )


def test_the_readme_has_the_same_commands():
    readme = (ROOT / "README.md").read_text()
    block = readme[readme.index("## Your own photos") :].split("```")[1]
    assert block.strip().splitlines() and set(block.strip().splitlines()) <= set(COMMANDS)
