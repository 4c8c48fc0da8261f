"""A run that is killed twice and started again ends with the same bits."""

import signal

from deit_tract.train import log
from tests.helpers.loop import same, wait_for_step, weights
from tests.helpers.processes import command, finish, kill, sets
from tests.helpers.runs import VOLATILE, short, train


def test_kill_9_in_the_middle_of_an_epoch_and_the_same_command_again(tmp_path, capsys):
    overrides = short(60, "save.every_steps=7", "evaluate.every_steps=25", "ema.decay=0.99")
    whole = train(tmp_path / "whole", *overrides)
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path / "killed"), *sets(overrides)]
    for step in (12, 33):  # of 20 an epoch; each between two checkpoints
        process = command(*arguments)
        wait_for_step(tmp_path / "killed", process, step)
        kill(process)
        assert finish(process)[0] == -signal.SIGKILL
    capsys.readouterr()
    train(tmp_path / "killed", *overrides)
    assert "from step" in capsys.readouterr().out
    for name in ("model", "ema"):
        assert same(weights(tmp_path / "whole", 60, name), weights(tmp_path / "killed", 60, name))
    again = log.read_metrics(tmp_path / "killed")
    assert [{k: v for k, v in r.items() if k not in VOLATILE} for r in again] == [
        {k: v for k, v in r.items() if k not in VOLATILE} for r in whole
    ]
