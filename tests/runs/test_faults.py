"""What may happen to a run in one process: cut checkpoints, bad steps, errors while saving."""

import math
import os
import shutil
import time

import numpy as np
import pytest

from deit_tract.common.errors import UserError
from deit_tract.train import checkpoint, loop
from tests.helpers.faults import state
from tests.helpers.runs import losses, short, train, train_until


def test_a_checkpoint_cut_at_any_byte_is_not_taken(tmp_path):
    train(tmp_path, *short(2, "save.every_steps=1"))
    whole, cut = tmp_path / "checkpoints" / "step_00000002", tmp_path / "cut"
    assert checkpoint.verify(whole) is None
    for name in ("model.safetensors", "optimizer.pt", "progress.json"):
        size = (whole / name).stat().st_size
        for length in sorted(
            {0, 1, size // 3, size // 2, size - 1, *np.random.default_rng(0).integers(0, size, 20)}
        ):
            shutil.copytree(whole, cut, dirs_exist_ok=True)
            os.truncate(cut / name, length)
            assert checkpoint.verify(cut) is not None, (name, length)
        shutil.rmtree(cut)
    flipped = bytearray((whole / "model.safetensors").read_bytes())
    flipped[-7] ^= 1
    (whole / "model.safetensors").write_bytes(flipped)
    said = []
    assert (
        checkpoint.newest(whole.parent, said.append).name == "step_00000001"
        and "changed" in said[0]
    )


def poison(monkeypatch, bad: set[int]):
    """A loss of NaN in lane 1 of the steps `bad`, counted as logs count."""
    real = loop.Run.optimizer_step

    def optimizer_step(self, step, batches):
        loss, task = self.task.loss, self.task
        lane = iter(range(4))

        def poisoned(*arguments):
            factor = math.nan if next(lane) == 1 and step + 1 in bad else 1.0
            return {name: value * factor for name, value in loss(*arguments).items()}

        task.loss = poisoned
        try:
            return real(self, step, batches)
        finally:
            task.loss = loss

    monkeypatch.setattr(loop.Run, "optimizer_step", optimizer_step)


def test_a_run_goes_on_from_the_last_good_checkpoint_without_a_bad_step(tmp_path, monkeypatch):
    overrides = short(12, "save.every_steps=3", "ema.decay=0.9")
    left_out = "faults.skip_steps=[8]"
    poison(monkeypatch, {8})
    with pytest.raises(
        UserError, match=r"step 8: .*repeat the command with --set faults.skip_steps=\[8\]"
    ):
        train(tmp_path / "a", *overrides)
    records = train(tmp_path / "a", *overrides, left_out)
    assert [record["step"] for record in records if "loss" in record] == [
        *range(1, 8),
        *range(9, 13),
    ]
    train(tmp_path / "b", *overrides, left_out)
    assert state(tmp_path / "a", 12) == state(tmp_path / "b", 12)
    monkeypatch.undo()
    train(tmp_path / "c", *overrides)
    assert state(tmp_path / "c", 12) != state(tmp_path / "b", 12)


def test_saving_in_the_background_saves_the_same(tmp_path, monkeypatch):
    overrides = short(9, "save.every_steps=2", "save.keep=9", "ema.decay=0.9")
    train(tmp_path / "a", *overrides)
    real = checkpoint.save

    def slow(*arguments):
        time.sleep(0.3)  # the next steps come before the files
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    train(tmp_path / "b", *overrides, "save.background=true")
    for step in (2, 4, 6, 8, 9):
        assert state(tmp_path / "a", step) == state(tmp_path / "b", step)


def test_an_error_of_saving_in_the_background_ends_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise UserError("step_00000002", "cannot be written (No space left on device)")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(UserError, match="No space left"):
        train(tmp_path, *short(9, "save.every_steps=2", "save.background=true"))


def test_a_tracker_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = short(8, "save.every_steps=3", "log.trackers=[tensorboard]")
    train_until(5, monkeypatch, tmp_path, *overrides)
    expected = losses(train(tmp_path, *overrides))
    folder = next(tmp_path.rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.value for event in shown] == pytest.approx(expected)
