"""The quickstart as a person runs it: its accuracy over seeds, and the whole run on one and three
processes.
"""

import json

import pytest

from deit_tract.train import log
from tests.helpers.processes import command, finish, run
from tests.helpers.runs import losses


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Whole runs with seeds 0 and 1 side by side, a log line each step."""
    folders = [tmp_path_factory.mktemp(f"seed{seed}") for seed in range(2)]
    processes = [
        command(
            "--recipe",
            "quickstart",
            "--output",
            str(folder),
            "--set",
            f"seed={seed}",
            "--set",
            "log.every_steps=1",
        )
        for seed, folder in enumerate(folders)
    ]
    for process in processes:
        code, _, err = finish(process, timeout=900)
        assert code == 0, err
    return folders


def test_95_percent_with_each_seed(seeds):
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in seeds]
    top1 = [summary["final"]["top1"] for summary in summaries]
    assert min(top1) >= 95, top1
    assert len({round(value["final"]["val_loss"], 6) for value in summaries}) == 2


def test_the_whole_run_on_three_processes_is_that_of_one(tmp_path, seeds):
    arguments = ("--recipe", "quickstart", "--output", str(tmp_path), "--set", "log.every_steps=1")
    code, _, err = run(*arguments, processes=3, timeout=900)
    assert code == 0, err
    ours, expected = losses(log.read_metrics(tmp_path)), losses(log.read_metrics(seeds[0]))
    assert len(ours) == len(expected) > 1000
    assert ours[:100] == pytest.approx(expected[:100], rel=0, abs=5e-6)
    assert ours == pytest.approx(expected, rel=0, abs=1e-4)
