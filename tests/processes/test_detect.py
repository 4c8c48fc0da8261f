"""Detection in real processes: killed and resumed to the bit, and two processes as one."""

import torch

from deit_tract.train import log
from tests.helpers.detect import ADAM, RECIPE, SMALL, weights
from tests.helpers.processes import command, finish, kill, run, sets
from tests.helpers.runs import losses, short, train


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    overrides = short(120, *SMALL, *ADAM, "save.every_steps=40")
    expected = train(tmp_path / "whole", *overrides, recipe=RECIPE)
    folder = tmp_path / "killed"
    arguments = ["--recipe", RECIPE, "--output", str(folder), *sets(overrides)]
    process = command(*arguments)
    while not (folder / "checkpoints" / "step_00000040").exists():
        assert process.poll() is None, finish(process)
    kill(process)
    finish(process)
    code, out, err = run(*arguments)
    assert code == 0 and ("from step 40" in out or "from step 80" in out), err
    records = log.read_metrics(folder)
    assert losses(records) == losses(expected) and records[-1]["ap07"] == expected[-1]["ap07"]
    ours, theirs = weights(folder, 120), weights(tmp_path / "whole", 120)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    """Two lanes of a photo each; to the bit if the lanes' gradients are summed in their order."""
    overrides = short(
        12, *SMALL, "batch.size=2", "batch.lanes=2", "batch.exact=true", "evaluate.pictures=1"
    )
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        code, out, err = run(
            "--recipe", RECIPE, "--output", str(folder), *sets(overrides), processes=processes
        )
        assert code == 0 and f"machine: {processes} process" in out, err
    one, two = (log.read_metrics(tmp_path / str(processes)) for processes in (1, 2))
    assert losses(one) == losses(two)
    assert {name: one[-1][name] for name in ("map07", "map_area", "detections", "ap07")} == {
        name: two[-1][name] for name in ("map07", "map_area", "detections", "ap07")
    }
    ours, theirs = weights(tmp_path / "1", 12), weights(tmp_path / "2", 12)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pictures = [
        (tmp_path / str(processes) / "evaluations" / "step_00000012").iterdir()
        for processes in (1, 2)
    ]
    assert [sorted(path.name for path in folder) for folder in pictures] == [
        ["000000.jpg", "classes.md"]
    ] * 2
