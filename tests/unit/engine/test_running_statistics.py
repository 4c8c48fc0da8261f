"""Batch normalisation under lanes: one GPU's statistics with one lane, the mean over lanes whatever
the processes.
"""

import torch
from torch import nn

from deit_tract.engine.batch_norm import RunningStatistics


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
        net(rows)
        plain(rows)
        statistics.add_lane(0)
        statistics.finish_step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True)
    )
