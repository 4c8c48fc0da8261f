"""The stream: the reference's order, and nothing but functions of (seed, epoch, step, lane,
position).
"""

import random

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler

from deit_tract.common.errors import UserError
from deit_tract.common.seeds import derive, seed_generators
from deit_tract.data.loader import Views, checked, loader, stacked
from deit_tract.data.stream import Stream, View, in_turn
from deit_tract.recipe.launch import lanes_of

IMAGENET = 1_281_167


def indices(stream: Stream, epoch: int, lane: int) -> list[int]:
    steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
    return [view.index for step in steps for view in stream.views(step, lane)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("lanes", "lane_size"), [(4, 512), (8, 256)])
def test_imagenet_epoch_is_the_reference_samplers(lanes, lane_size, last):
    stream = Stream(IMAGENET, lanes, lane_size, repeats=3)
    assert stream.steps_per_epoch == 625 and lanes * lane_size == 2048
    lane = lanes - 1 if last else 0
    sampler = RepeatAugSampler(range(IMAGENET), lanes, lane, num_repeats=3)
    sampler.set_epoch(2)
    assert indices(stream, 2, lane) == list(sampler)[: 625 * lane_size]


@pytest.mark.parametrize("samples", [256, 257, 1437, 2600])
@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("repeats", [2, 3])
def test_small_sets_are_dealt_as_the_reference_deals_them(samples, lanes, repeats):
    stream = Stream(samples, lanes, 4, repeats)
    for lane in range(lanes):
        for epoch in (0, 3):
            sampler = RepeatAugSampler(range(samples), lanes, lane, num_repeats=repeats)
            sampler.set_epoch(epoch)
            expected = list(sampler)
            assert indices(stream, epoch, lane) == expected[: len(expected) // 4 * 4]


@pytest.mark.parametrize("samples", [40, 255])
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_fewer_images_than_the_references_multiple_are_all_dealt(samples, lanes):
    """The reference would deal none; an epoch is as many views as there are images, each repeated
    in a row.
    """
    stream = Stream(samples, lanes, 4, repeats=3)
    assert stream.steps_per_epoch == -(-samples // lanes) // 4
    dealt = [indices(stream, 0, lane) for lane in range(lanes)]
    in_turn = [lane[position] for position in range(len(dealt[0])) for lane in dealt]
    order = stream.order(0).tolist()
    assert in_turn == [order[position % (3 * samples) // 3] for position in range(len(in_turn))]


@pytest.mark.parametrize("samples", [40, 257, 1437])
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_without_repeats_it_is_torchs_distributed_sampler(samples, lanes):
    stream = Stream(samples, lanes, 4)
    for lane in range(lanes):
        sampler = DistributedSampler(range(samples), lanes, lane, seed=0)
        sampler.set_epoch(1)
        expected = list(sampler)
        assert indices(stream, 1, lane) == expected[: len(expected) // 4 * 4]


def test_fine_tuning_epoch_of_imagenet_has_the_references_2502_steps():
    assert Stream(IMAGENET, 8, 64).steps_per_epoch == 2502


def test_another_seed_is_another_order_not_a_shifted_one():
    orders = [
        Stream(1000, 2, 4, seed=seed).order(epoch).tolist()
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(order) for order in orders}) == 9


def test_views_depend_on_their_place_alone():
    stream = Stream(1437, 4, 16, repeats=3, seed=7)
    late_first = [stream.views(step, lane) for step in (57, 3, 20) for lane in (3, 0)]
    fresh = [Stream(1437, 4, 16, 3, 7).views(step, lane) for step in (57, 3, 20) for lane in (3, 0)]
    assert late_first == fresh
    views = [view for step in range(40) for lane in range(4) for view in stream.views(step, lane)]
    assert len({view.seed for view in views}) == len(views), (
        "the copies of an image are different views"
    )
    other = Stream(1437, 4, 16, 3, 8).views(3, 0)
    assert not {view.seed for view in other} & {view.seed for view in views}


def test_repeats_of_an_image_stand_in_different_lanes():
    stream = Stream(1437, 4, 16, repeats=3)
    lanes = [[view.index for view in stream.views(0, lane)] for lane in range(4)]
    assert (
        all(len(set(lane)) == 16 for lane in lanes)
        and len({i for lane in lanes for i in lane}) == 22
    )


def test_starting_at_a_step_is_the_same_as_arriving_there():
    stream = Stream(300, 2, 8)
    whole = list(in_turn(stream, range(0, 60), [0, 1]))
    assert list(in_turn(stream, range(37, 60), [0, 1])) == whole[2 * 37 :]


def test_lane_and_view_seeds_do_not_collide():
    seeds = {
        derive(0, purpose, a, b)
        for purpose in ("view", "lane")
        for a in range(100)
        for b in range(100)
    }
    assert len(seeds) == 20_000 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "lane", 1, 2) == 6070857385101708053, (
        "seeds are the same on every machine and version"
    )


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_lanes_are_shared_out_whole(processes):
    shares = [list(lanes_of(rank, processes, 4)) for rank in range(processes)]
    assert sorted(lane for share in shares for lane in share) == [0, 1, 2, 3]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="use at most 40"):
        Stream(40, 4, 16)


class Blank:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 63:
            raise UserError("photo.jpg", "cannot be read as an image")
        return torch.zeros(8), index


def noisy(tensor: torch.Tensor) -> torch.Tensor:
    """Draws from all three generators a transform may use."""
    return tensor + torch.rand(8) + random.random() + float(np.random.rand())


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_pixels_do_not_depend_on_workers_or_on_what_was_drawn_before(workers):
    stream = Stream(64, 2, 4, seed=1)

    def pixels(count: int) -> list[torch.Tensor]:
        torch.rand(count + 1)
        random.random()
        np.random.rand()
        keys = (
            views
            for views in in_turn(stream, range(12), [0, 1])
            if all(view.index != 63 for view in views)
        )
        batches = checked(loader(Views(Blank(), noisy), keys, count, False, stacked))
        return [batch["image"] for batch in batches]

    alone, together = pixels(0), pixels(workers)
    assert len(alone) == len(together) > 10
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len({tuple(row) for batch in alone for row in batch.tolist()}) == 4 * len(alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_error_from_any_worker(workers):
    keys = [[View(index, 0) for index in (61, 62)], [View(index, 0) for index in (62, 63)]]
    batches = checked(loader(Views(Blank(), noisy), keys, workers, False, stacked))
    next(batches)
    with pytest.raises(UserError, match=r"^photo.jpg: cannot be read as an image$"):
        next(batches)


def test_seeding_covers_the_three_generators():
    draws = []
    for _ in range(2):
        seed_generators(2**62 + 5)
        draws.append((random.random(), float(np.random.rand()), torch.rand(1).item()))
    assert draws[0] == draws[1]


LOST = [
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
    ConnectionResetError(104, "Connection reset by peer"),
    ConnectionRefusedError(111, "Connection refused"),
    EOFError(),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_dead_loader_process_is_a_mistake_in_one_line(error):
    """torch notices at its queue, or while it takes over a tensor whose maker is gone."""

    def batches():
        raise error
        yield

    with pytest.raises(
        UserError, match=r"^data.workers: a loader process died \(.*[^ ]\); it may have run out"
    ):
        next(checked(batches()))


def test_other_errors_of_a_loader_stay_what_they_are():
    def batches():
        raise RuntimeError("something else")
        yield

    with pytest.raises(RuntimeError, match="something else"):
        next(checked(batches()))
