"""From a checkpoint of train.py to each transfer set with the shipped recipes, in a small ViT and a
few steps.

CIFAR-10 and Cars are real photos; those of Flowers-102 are made here, a colour a class, at the
paths its lists name.
"""

import colorsys
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import loadmat

from deit_tract.data.sets.load import load_splits
from deit_tract.data.transforms import augment
from deit_tract.models.build import build_model
from deit_tract.models.weights import load_weights
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import log, loop
from deit_tract.train.weights_source import find_weights
from tests.helpers import REAL_IMAGES
from tests.helpers.loop import same, wait_for_step, weights
from tests.helpers.processes import command, finish, kill, run, sets
from tests.helpers.runs import losses

SMALL = [
    "model.args.patch_size=4",
    "model.args.embed_dim=48",
    "model.args.num_heads=3",
    "model.args.depth=2",
    "data.workers=0",
    "precision.autocast=null",
    "log.every_steps=1",
]


def tuned(size: int, steps: int, lr: float, *more: str) -> list[str]:
    """Overrides that make a transfer recipe small: so many px and steps of 64 views."""
    return [
        *SMALL,
        f"data.image_size={size}",
        "data.verify=false",
        "batch.size=64",
        "batch.lanes=2",
        f"optim.lr={lr}",
        f"schedule.steps={steps}",
        "schedule.warmup_steps=5",
        "schedule.update=step",
        f"evaluate.every_steps={steps}",
        f"save.every_steps={steps // 3}",
        *more,
    ]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, real_images):
    """A run of train.py with TrAct on real photos: a ViT with ViT-S's layers, small, at 24 px."""
    folder = tmp_path_factory.mktemp("pretrained")
    overrides = [
        *SMALL,
        "data.name=folder",
        "data.classes=200",
        "data.image_size=24",
        "batch.size=64",
        "batch.lanes=2",
        "schedule.steps=8",
        "schedule.warmup_steps=2",
        "evaluate.every_steps=8",
        "save.every_steps=8",
    ]
    arguments = ["--recipe", "vit_s_800ep_tract", "--output", str(folder), *sets(overrides)]
    code, _, err = run(
        *arguments, "--data-dir", str(real_images("tinyimagenet_sub.tar.gz")), timeout=600
    )
    assert code == 0, err
    return folder


def finetune(
    output: Path, checkpoint: Path, recipe: str, data: Path, overrides: list[str]
) -> list[str]:
    given = [
        "--recipe",
        recipe,
        "--output",
        str(output),
        "--checkpoint",
        str(checkpoint),
        "--data-dir",
        str(data),
    ]
    return [*given, *sets(overrides)]


def tune(
    output: Path, checkpoint: Path, recipe: str, data: Path, overrides: list[str]
) -> list[dict]:
    """The same in this process; the records of metrics.jsonl."""
    loop.train(load_recipe(recipe, overrides, str(data)), output, str(checkpoint))
    return log.read_metrics(output)


@torch.no_grad()
def accuracy(folder: Path) -> float:
    """Top-1 (percent) of a run's newest weights, counted here image by image."""
    recipe = load_recipe(str(folder / "recipe.yaml"))
    net = build_model(recipe).eval()
    load_weights(net, find_weights(str(folder)).weights)
    images, transform = load_splits(recipe.data).val, augment.eval_transform(recipe)
    right = sum(
        int(net(transform(image).unsqueeze(0)).argmax()) == label for image, label in images
    )
    return 100 * right / len(images)


def test_cifar_pickles_after_a_kill_end_as_without(tmp_path, pretrained, real_images):
    data, recipe = real_images("cifar10_exact1017.tar.gz"), "transfer_cifar10_vit_s_tract"
    overrides = tuned(
        32, 30, 1e-2, "augment.rand_augment=null", "mix.prob=0"
    )  # from 6 x 6 patches to 8 x 8
    records = tune(tmp_path / "whole", pretrained, recipe, data, overrides)
    assert sum(losses(records)[-5:]) < sum(losses(records)[:5])
    assert (
        records[-1]["top1"] == pytest.approx(accuracy(tmp_path / "whole"))
        and records[-1]["top1"] > 15
    )  # chance 10

    moved = tmp_path / "pretrained"
    shutil.copytree(pretrained, moved)
    arguments = finetune(tmp_path / "killed", moved, recipe, data, overrides)
    process = command(*arguments, script="finetune.py")
    wait_for_step(tmp_path / "killed", process, 14, timeout=500)
    kill(process)
    finish(process)
    shutil.rmtree(moved)  # what it started from is not needed again
    code, out, err = run(*arguments, script="finetune.py", timeout=600)
    assert code == 0, err
    assert ("from step 10" in out or "from step 20" in out) and "finished: top1 " in out
    assert same(weights(tmp_path / "whole", 30), weights(tmp_path / "killed", 30))
    assert log.read_metrics(tmp_path / "killed")[-1]["top1"] == records[-1]["top1"]


def test_cifar_as_jpeg_folders(tmp_path, pretrained):
    archive, data = REAL_IMAGES / "cifar10_jpeg_60000.tar.gz", tmp_path / "data"
    if not archive.exists():
        pytest.skip(f"needs the real images {archive.name} beside the checkout")
    with tarfile.open(archive) as tar:  # the first 40 of each class and part
        tar.extractall(
            data, [m for m in tar if m.isfile() and int(Path(m.name).stem) < 40], filter="data"
        )
    records = tune(
        tmp_path / "run",
        pretrained,
        "transfer_cifar10_vit_s_tract",
        data,
        tuned(32, 6, 1e-3, "data.name=folder"),
    )
    assert records[-1]["step"] == 6 and records[-1]["top1"] == pytest.approx(
        accuracy(tmp_path / "run")
    )


def test_cars_with_sgd(tmp_path, pretrained, real_images):
    data = real_images("stanford_cars_sub.tar")
    records = tune(
        tmp_path / "run", pretrained, "transfer_cars_vit_s_sgd_tract", data, tuned(48, 6, 1e-2)
    )
    assert records[-1]["top1"] == pytest.approx(accuracy(tmp_path / "run"))
    assert weights(tmp_path / "run", 6)["head.weight"].shape == (196, 48)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """The authors' lists and, at their paths, plain photos: hue and brightness tell the class."""
    lists = REAL_IMAGES / "flowers-102"
    if not lists.exists():
        pytest.skip("needs the lists of Flowers-102 beside the checkout")
    folder = tmp_path_factory.mktemp("flowers") / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copyfile(lists / name, folder / name)
    for number, label in enumerate(
        loadmat(lists / "imagelabels.mat", squeeze_me=True)["labels"], 1
    ):
        red, green, blue = colorsys.hsv_to_rgb((label % 34) / 34, 1.0, 1.0 - 0.3 * (label // 34))
        colour = tuple(round(255 * value) for value in (red, green, blue))
        Image.new("RGB", (16, 12), colour).save(folder / "jpg" / f"image_{number:05d}.jpg")
    return folder.parent


def test_flowers_whole(tmp_path, pretrained, flowers):
    """All 8,189 at their places: the official counts hold, so nothing is switched off."""
    overrides = [
        one
        for one in tuned(16, 24, 1e-2, "augment.rand_augment=null", "mix.prob=0")
        if "verify" not in one
    ]
    records = tune(
        tmp_path / "run", pretrained, "transfer_flowers102_vit_s_tract", flowers, overrides
    )
    assert (
        sum(losses(records)[-5:]) < sum(losses(records)[:5]) and records[-1]["top5"] > 10
    )  # chance is 5
    assert load_file(find_weights(str(tmp_path / "run")).weights)["pos_embed"].shape == (1, 16, 48)
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")).data.verify


def test_attention_alone_without_tract(tmp_path, pretrained, real_images):
    overrides = tuned(32, 6, 1e-3, "model.train=attn")
    data = real_images("cifar10_exact1017.tar.gz")
    tune(tmp_path / "run", pretrained, "transfer_cifar10_vit_s", data, overrides)
    before, after = load_file(find_weights(str(pretrained)).weights), weights(tmp_path / "run", 6)
    assert torch.equal(before["patch_embed.proj.weight"], after["patch_embed.proj.weight"])
    assert not torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])
