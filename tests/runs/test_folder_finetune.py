"""folder_finetune on class folders: what is left open is filled in, kept, and compared again."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from deit_tract.common.errors import UserError
from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import loop
from deit_tract.train.log import read_metrics
from tests.helpers.images import write_grey_photos
from tests.helpers.runs import losses, short


def finetune(folder: Path, data: Path, weights: Path, steps: int, *overrides: str) -> list[dict]:
    settings = short(steps, "model.name=test_resnet", "data.image_size=32", "batch.size=4")
    settings += ["schedule.warmup_epochs=null", "schedule.epochs=null", "data.workers=0"]
    settings += ["data.split=0.3", "precision.autocast=null", *overrides]
    loop.train(load_recipe("folder_finetune", settings, str(data)), folder, str(weights))
    return read_metrics(folder)


def test_it_trains_resumes_and_refuses_another_class(tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    write_grey_photos(tmp_path / "photos")
    data = tmp_path / "photos" / "train"
    twice = ("optim.layer_decay=0.7", "loss.class_weights=inverse")
    whole = finetune(tmp_path / "whole", data, weights, 4, *twice, "model.checkpointing=true")
    part = tmp_path / "part"
    (tmp_path / "whole/checkpoints").rename(tmp_path / "kept")
    with pytest.MonkeyPatch.context() as patch:
        step = loop.Run.optimizer_step
        patch.setattr(
            loop.Run,
            "optimizer_step",
            lambda run, now, batches: _stop_at(2, now) or step(run, now, batches),
        )
        with pytest.raises(KeyboardInterrupt):
            finetune(part, data, weights, 4, *twice, "save.every_epochs=null", "save.every_steps=1")
    weights.unlink()  # a resumed run has its own
    again = finetune(part, data, weights, 4, *twice)
    assert losses(again) == losses(whole) and len(losses(whole)) == 4
    recipe = load_recipe(str(part / "recipe.yaml"))
    assert (recipe.data.classes, recipe.data.mean) == (2, [0.5, 0.5, 0.5])
    shutil.copytree(data / "a", data / "c")
    with pytest.raises(UserError, match=r"data\.classes: 2 -> 3"):
        finetune(part, data, weights, 4, *twice)


def _stop_at(step: int, now: int) -> None:
    if now == step:
        raise KeyboardInterrupt
