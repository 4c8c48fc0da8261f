"""Batch normalisation under lanes: one GPU's statistics with one lane, the mean over lanes whatever the processes."""

import shutil

import pytest
import torch
from conftest import command, finish, sets, short, train
from safetensors.torch import load_file
from torch import nn

from deit_tract.engine.batch_norm import RunningStatistics

# A narrow CNN on made images, its weights hardly moved: batch normalisation would blow rounding up
SMALL = (
    "data.name=synthetic",
    "data.image_size=16",
    "model.args.widths=[4,4,4]",
    "model.args.stem=4",
    "batch.size=16",
)
LANES = (
    *SMALL,
    "batch.lanes=4",
    "optim.lr=1e-3",
    "schedule.name=constant",
    "ema.decay=0.5",
    "batch.exact=true",
)


def cnn(folder, steps: int, *overrides: str):
    train(
        folder,
        *short(steps, "schedule.warmup_steps=null", *overrides),
        recipe="cifar10_cnn_8ep_sgd_tract",
    )
    return weights(folder, steps)


def weights(folder, step: int) -> dict:
    files = (folder / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    return {f"{file.stem}.{key}": value for file in files for key, value in load_file(file).items()}


def test_with_lanes_a_step_moves_them_once_by_the_mean_over_lanes():
    net, reference = nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(3)
    for layer in (net[0], reference):
        layer.running_mean += 2  # somewhere else than at the start
    statistics = RunningStatistics(net, lanes=4)
    mean, variance = reference.running_mean.clone(), reference.running_var.clone()
    for _ in range(3):
        lanes = [torch.randn(8, 3, 4, 4) * (k + 1) + k for k in range(4)]
        for number, lane in enumerate(lanes):
            out = net(lane)
            torch.testing.assert_close(out, nn.BatchNorm2d(3)(lane))  # its own mean and variance
            statistics.add_lane(number)
        statistics.finish_step()
        mean = 0.9 * mean + 0.1 * torch.stack([lane.mean((0, 2, 3)) for lane in lanes]).mean(0)
        variance = 0.9 * variance + 0.1 * torch.stack(
            [lane.transpose(0, 1).flatten(1).var(1) for lane in lanes]
        ).mean(0)
        torch.testing.assert_close(net[0].running_mean, mean)
        torch.testing.assert_close(net[0].running_var, variance)
    assert net[0].num_batches_tracked == 3


def test_with_one_lane_they_are_torchs_to_the_bit():
    torch.manual_seed(0)
    net, plain = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    statistics = RunningStatistics(net, lanes=1)
    for _ in range(3):
        rows = torch.randn(16, 5)
        net(rows), plain(rows)
        statistics.add_lane(0)
        statistics.finish_step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_processes_have_the_statistics_of_one(tmp_path):
    """Four lanes on one process and, unevenly, on three, to the bit where gradients are; the EMA of them too."""
    steps, overrides = 3, ("schedule.steps=3", *LANES, "evaluate.batch_size=50")
    alone = cnn(tmp_path / "1", steps, *LANES)
    arguments = [
        "--recipe",
        "cifar10_cnn_8ep_sgd_tract",
        "--output",
        str(tmp_path / "n"),
        *sets(short(steps, *overrides)),
    ]
    arguments += sets(["schedule.warmup_steps=null"])
    code, _, err = finish(command(*arguments, processes=3), timeout=600)
    assert code == 0, err
    together = weights(tmp_path / "n", steps)
    assert list(alone) == list(together) and any(key.endswith("running_var") for key in alone)
    assert all(torch.equal(together[key], value) for key, value in alone.items())
    moved = alone["model.bn1.running_mean"]
    assert moved.abs().max() > 0.01 and not torch.equal(moved, alone["ema.bn1.running_mean"])


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_resumed_run_has_them_to_the_bit(tmp_path, lanes):
    settings = (*LANES, f"batch.lanes={lanes}", "save.every_epochs=null", "save.every_steps=2")
    whole = cnn(tmp_path, 4, *settings)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    again = cnn(tmp_path, 4, *settings)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
