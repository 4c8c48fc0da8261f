"""From workers to lanes: the views that each lane would have alone, an image read once where lanes
share it.
"""

import random
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from deit_tract.common.errors import UserError
from deit_tract.data import feed
from deit_tract.data.loader import Replaced, Views, _signals_held, loader
from deit_tract.data.stream import Stream

CPU = torch.device("cpu")


class Counted:
    """Images of which each carries its index, and that count how often they are read."""

    def __init__(self, count: int):
        self.count, self.reads = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads.append(index)
        return torch.full((4,), float(index)), index


def lanes_of(images, transform, stream: Stream, lanes: range, workers: int) -> feed.Feed:
    return feed.make_feed(feed.Source(images, transform), stream, lanes, workers, CPU)


def look(image: torch.Tensor) -> torch.Tensor:
    return image + torch.rand(4) + random.random() + float(np.random.rand())


class Deferred:
    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        draws = torch.rand(4) + random.random() + float(np.random.rand())
        return {"image": image, "draws": draws}

    def finish(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return images + draws


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("processes", "repeats", "lanes"),
    [(1, 3, 4), (2, 3, 4), (3, 3, 8), (1, 3, 1), (1, 1, 4), (1, 2, 3)],
)
def test_lanes_hold_what_they_would_alone(workers, processes, repeats, lanes):
    stream, start = Stream(600, lanes, 10, repeats, seed=3), 5
    steps = range(start, start + 4)
    for rank in range(0, processes, 2):
        mine = range(rank, lanes, processes)
        if workers and rank:
            continue
        images = Counted(600)
        expected = [
            [Views(images, look)[view].data for view in stream.views(step, lane)]
            for step in steps
            for lane in mine
        ]
        found = list(lanes_of(images, look, stream, mine, workers).batches(steps))
        assert len(found) == len(expected)
        for batch, samples in zip(found, expected, strict=True):
            assert batch.keys() == {"image", "label"}
            assert torch.equal(batch["image"], torch.stack([one["image"] for one in samples]))
            assert batch["label"].tolist() == [one["label"] for one in samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_left_to_the_device_is_done_a_lane_at_a_time(workers):
    stream, images = Stream(600, 4, 10, 3), Counted(600)
    plain, deferred = (
        list(lanes_of(images, transform, stream, range(4), workers).batches(range(3, 6)))
        for transform in (look, Deferred())
    )
    for one, other in zip(plain, deferred, strict=True):
        assert one.keys() == other.keys() == {"image", "label"}
        torch.testing.assert_close(one["image"], other["image"], rtol=1e-6, atol=1e-6)
        assert torch.equal(one["label"], other["label"])


def test_the_views_of_an_image_share_one_read():
    stream, images = Stream(600, 4, 10, 3), Counted(600)
    list(lanes_of(images, look, stream, range(4), 0).batches(range(5)))
    different = [
        len({view.index for lane in range(4) for view in stream.views(step, lane)})
        for step in range(5)
    ]
    assert len(images.reads) == sum(different) and sum(different) <= 5 * (40 / 3 + 1)


def units(stream: Stream, step: int, lanes: range, workers: int) -> list:
    """What workers are asked for in a step."""
    asked = lanes_of(Counted(20_000), look, stream, lanes, workers)
    if isinstance(asked, feed.SlicedFeed):
        return list(asked.units(step))
    return [stream.views(step, lane) for lane in lanes]


@pytest.mark.parametrize(("processes", "share"), [(1, 1 / 3), (2, 2 / 3), (4, 1), (8, 1)])
def test_reads_per_view_of_the_published_runs(processes, share):
    """8 lanes of 256, dealt as the reference deals GPUs: on one process a third of the views needs
    a read.
    """
    stream, lanes = Stream(20_000, 8, 256, 3), range(0, 8, processes)
    reads = views = 0
    for step in range(4):
        parts = units(stream, step, lanes, workers=4)
        assert len(parts) >= len(lanes) and max(map(len, parts)) <= 256
        assert sorted(v for p in parts for v in p) == sorted(
            v for lane in lanes for v in stream.views(step, lane)
        )
        reads += sum(len({view.index for view in part}) for part in parts)
        views += sum(map(len, parts))
    assert reads / views == pytest.approx(share, abs=0.01)


def test_slices_cover_the_rows_and_cut_between_images():
    stream = Stream(5000, 4, 50, 3)
    for step in range(stream.steps_per_epoch, stream.steps_per_epoch + 7):
        cuts = lanes_of(Counted(5000), look, stream, range(4), workers=2).slices(step)
        assert [row for cut in cuts for row in cut] == list(range(50))
        first = step % stream.steps_per_epoch * 50
        assert all((first + cut.start) * 4 % 3 == 0 for cut in cuts[1:])


def test_a_bad_image_in_a_slice_is_its_error():
    class Bad(Counted):
        def __getitem__(self, index):
            if index == stream.views(1, 2)[4].index:
                raise UserError("photo.jpg", "cannot be read as an image")
            return super().__getitem__(index)

    stream = Stream(600, 4, 10, 3)
    for workers in (0, 1):
        batches = lanes_of(Bad(600), look, stream, range(4), workers).batches(range(3))
        with pytest.raises(UserError, match=r"^photo.jpg: cannot be read as an image$"):
            list(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_replaced_image_is_the_same_in_slices_and_in_lanes(workers):
    class Bad(Counted):
        def __getitem__(self, index):
            if index == bad:
                raise UserError(f"{index}.jpg", "cannot be read as an image")
            return super().__getitem__(index)

    stream = Stream(600, 4, 10, 3)
    bad = stream.views(1, 2)[4].index
    found = []
    for lanes in (range(4), range(2, 3)):  # slices of four lanes, a lane by itself
        replaced = Replaced(3)
        source = feed.Source(Bad(600), look)
        made = feed.make_feed(source, stream, lanes, workers, CPU, replaced)
        assert isinstance(made, feed.SlicedFeed if len(lanes) > 1 else feed.PlainFeed)
        found.append(list(made.batches([1])))
        assert replaced.errors == {f"{bad}.jpg: cannot be read as an image"}
    assert bad not in found[1][0]["label"]
    assert all(torch.equal(found[0][2][name], found[1][0][name]) for name in ("image", "label"))


class Sleeping(Dataset):
    def __getitems__(self, keys):
        time.sleep(60)


def test_only_its_parent_ends_a_loader_process():
    with _signals_held():
        waiting = iter(loader(Sleeping(), [[0]], 1, False, list))
    worker = waiting._workers[0]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        subprocess.run(["kill", f"-{number}", str(worker.pid)], check=True)
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()  # as torch does when it hangs
    worker.join(5)
    assert worker.exitcode == 0
