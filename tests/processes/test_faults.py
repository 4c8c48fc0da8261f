"""What may happen to a run: signals, kills, a process that hangs, a full disk, a second job."""

import contextlib
import json
import os
import resource
import signal
import time

import psutil
import pytest
from safetensors.torch import load_file

from deit_tract.common.errors import UserError
from deit_tract.train import log
from deit_tract.train.folder import Lock
from tests.helpers.faults import state
from tests.helpers.images import write_grey_photos
from tests.helpers.processes import command, finish, kill, run, sets, workers, worlds
from tests.helpers.runs import short, train


def started(folder, overrides, step: int, processes: int = 1, timeout: float = 240):
    """A run in real processes that has passed `step`."""
    process = command(
        "--recipe", "quickstart", "--output", str(folder), *sets(overrides), processes=processes
    )
    deadline = time.time() + timeout
    while not any(record["step"] >= step for record in log.read_metrics(folder)):
        assert time.time() < deadline and process.poll() is None, finish(process, 1)
        time.sleep(0.01)
    return process


def again(folder, overrides, processes: int = 1):
    return run(
        "--recipe", "quickstart", "--output", str(folder), *sets(overrides), processes=processes
    )


@pytest.mark.parametrize("processes, number", [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_to_one_process_saves_and_stops_all(tmp_path, processes, number):
    overrides = short(60)
    process = started(tmp_path / "a", overrides, 5, processes)
    target = process if processes == 1 else workers(process)[1]
    target.send_signal(number)
    code, out, _ = finish(process)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["exit"] == "preempted" and 5 <= summary["steps"] < 60
    assert f"preempted: saved step {summary['steps']}" in out
    assert code == (75 if processes == 1 else 1), "a launcher makes every code 1"
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == [
        f"step_{summary['steps']:08d}"
    ]
    out = worlds(tmp_path, [(name, processes, overrides) for name in ("a", "b")])
    assert out.count(f"from step {summary['steps']}") == 1
    assert state(tmp_path / "a", 60) == state(tmp_path / "b", 60)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_named(tmp_path, rank):
    process = started(tmp_path, short(400, "faults.timeout=10"), 5, processes=2)
    hung = workers(process)[rank]
    hung.send_signal(signal.SIGSTOP)
    lines = iter(process.stderr.readline, "")
    error = next((line for line in lines if line.startswith("error: ")), "none")
    kill(process)
    finish(process)
    assert (
        f"process {rank} (host " in error
        and f"pid {hung.pid}) did not answer: gone, or hanging for 10 s" in error
    )
    assert error.startswith("error: " if rank else "error: process 1: ")


def test_a_second_job_in_the_folder_is_refused_until_the_first_is_gone(tmp_path):
    overrides = short(2000)
    process = started(tmp_path, overrides, 1)
    code, _, err = again(tmp_path, overrides)
    assert (
        code == 2
        and f"a run is in progress here (host {os.uname().nodename}, pid {process.pid})" in err
    )
    assert process.poll() is None
    kill(process)
    finish(process)
    lock = Lock(tmp_path)
    lock.take()  # no error: the lock went with its process
    lock.release()


def test_a_loader_process_that_dies_ends_the_run_in_one_line(tmp_path):
    process = started(tmp_path, short(2000, "data.workers=2"), 2)
    psutil.Process(process.pid).children()[0].kill()
    code, _, err = finish(process)
    assert (
        code == 2 and "error: data.workers: a loader process died" in err and "Traceback" not in err
    ), err


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    """A limit on the size of files stands for the disk: the second checkpoint does not fit."""
    overrides = short(12, "save.every_steps=4")
    train(tmp_path / "a", *overrides)
    largest = max(path.stat().st_size for path in (tmp_path / "a").rglob("optimizer.pt"))
    process = started(tmp_path / "b", short(12, "save.every_steps=4", "data.workers=0"), 4)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))
    code, _, err = finish(process)
    assert code == 2 and "step_0000" in err and "cannot be written (File too large)" in err, err
    assert "Traceback" not in err
    code, _, err = again(tmp_path / "b", overrides)
    assert code == 0, err
    assert state(tmp_path / "b", 12) == state(tmp_path / "a", 12)


def test_unreadable_photos_are_counted_over_processes_and_restarts(tmp_path, capsys):
    write_grey_photos(tmp_path / "data")
    for name in ("a/1.png", "b/3.png"):
        (tmp_path / "data" / "train" / name).write_bytes(b"not an image")
    overrides = [
        "data.workers=1",
        "data.classes=2",
        "batch.size=8",
        "batch.lanes=2",
        "augment.repeats=1",
        "model.args.depth=1",
        "schedule.steps=6",
        "schedule.warmup_steps=1",
        "log.every_steps=1",
        "save.every_steps=3",
    ]
    source = {"recipe": "folder_vit_ti", "data_dir": str(tmp_path / "data")}
    with pytest.raises(UserError, match="cannot be read as an image"):
        train(tmp_path / "1", *overrides, **source)
    train(tmp_path / "1", *overrides, "data.skip_unreadable=2", **source)
    said = [capsys.readouterr().err]
    words = ("--recipe", "folder_vit_ti", "--data-dir", str(tmp_path / "data"))
    words += ("--output", str(tmp_path / "2"), *sets(overrides))
    code, _, err = run(*words, processes=2)
    assert code != 0 and "cannot be read as an image" in err
    code, _, err = run(*words, "--set", "data.skip_unreadable=2", processes=2)
    assert code == 0, err
    said.append(err)
    weights = []
    for folder, err in zip((tmp_path / "1", tmp_path / "2"), said, strict=True):
        assert "replaced (1 of at most 2)" in err
        assert log.read_metrics(folder)[-2]["replaced"] == 2
        last = folder / "checkpoints" / "step_00000006"
        weights.append(load_file(last / "model.safetensors"))
        assert len(json.loads((last / "progress.json").read_text())["replaced"]) == 2
    assert max((weights[0][key] - weights[1][key]).abs().max() for key in weights[0]) < 1e-4
