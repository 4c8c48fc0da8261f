"""The batch script under a SLURM of shell scripts: options, stops, requeues."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deit_tract.train import log
from tests.helpers import ROOT
from tests.helpers.processes import finish, sets
from tests.helpers.runs import losses, short, train
from tests.helpers.submit import (
    printed,  # noqa: F401 - a fixture
    submit,
)
from tests.processes.programs import fake_slurm

FAKE_LAUNCHER = ROOT / "tests" / "processes" / "programs" / "fake_launcher.py"
# Free text of a recipe, with all that a shell would take apart
NASTY = """about=it's "quoted" $HOME `id` $(id) \\ * ; # & | ~ !! ä"""


def directives(text: str) -> dict[str, str]:
    """The #SBATCH lines, read as sbatch reads them."""
    words = [
        shlex.split(line.removeprefix("#SBATCH "))
        for line in text.splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert all(len(line) == 1 for line in words), words
    return dict((*word.removeprefix("--").split("=", 1), "")[:2] for (word,) in words)


class Job:
    """A batch script started as SLURM would, with every node on this machine."""

    def __init__(self, folder: Path, text: str, nodes: int = 2):
        self.folder, self.text, self.nodes, self.starts = folder, text, nodes, 0
        self.bin = fake_slurm.install(folder)

    def faked(self) -> "Job":
        """The same job with the fake launcher in the place of Accelerate's."""
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{FAKE_LAUNCHER}" "$@"\n')
        python.chmod(0o755)
        self.text = re.sub(
            "^python=.*$", f"python={shlex.quote(str(python))}", self.text, flags=re.MULTILINE
        )
        return self

    def start(self, **environment: str) -> subprocess.Popen:
        script = self.folder / "job.sh"
        script.write_text(self.text)
        slurm = {
            "SLURM_JOB_ID": "71",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": str(self.nodes),
        }
        slurm |= {"SLURM_RESTART_COUNT": str(self.starts)} if self.starts else {}
        path = {"PATH": f"{self.bin}:{os.environ['PATH']}", "FAKE_SLURM": str(self.bin)}
        cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.starts += 1
        return subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, **slurm, **path, **cpu, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directives(self.text)["chdir"],
        )

    def run(self, **environment: str) -> tuple[int, str, str]:
        return finish(self.start(**environment), timeout=600)

    def requeued(self) -> list[list[str]]:
        return fake_slurm.told(self.folder, "scontrol")


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.02)


# ---- the script ----------------------------------------------------------------------------------


def test_what_the_script_asks_for(printed):
    few = ("--gpus-per-node", "2", "--nodes", "2")
    text = printed(
        *few,
        "--time",
        "1-00:00:00",
        "--partition",
        "a b",
        "--qos",
        'x"\\y',
        "--exclusive",
        "--grace",
        "90",
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert directives(text) == {
        "job-name": "quickstart",
        "chdir": str(Path.cwd()),
        "output": "runs/quickstart/slurm-%j.out",
        "open-mode": "append",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "2",
        "cpus-per-task": "2",
        "time": "1-00:00:00",
        "partition": "a b",
        "qos": 'x"\\y',
        "requeue": "",
        "exclusive": "",
        "signal": "B:USR1@90",
    }
    assert len(text.splitlines()) < 75 and max(map(len, text.splitlines())) < 200
    text = printed(*few, "--gres", "gpu:a100:2", "--cpus-per-task", "9", "--set", "data.workers=3")
    assert "gpus-per-node" not in directives(text) and directives(text)["cpus-per-task"] == "9"
    assert directives(printed(*few, "--set", "data.workers=3"))["cpus-per-task"] == "8", (
        "two processes, three loaders each"
    )


def test_values_arrive_as_they_were_given(tmp_path, printed, monkeypatch):
    folder = tmp_path / "a 'b' $HOME % ä"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my recipe.yaml").write_text("base: quickstart\n")
    given = [
        *("--recipe", "./my recipe.yaml", "--checkpoint", "timm:x y"),
        *(
            "--data-dir",
            '/data/$USER\'s "set"',
            "--output",
            "out put/`x`",
            *sets([NASTY, "seed=3"]),
        ),
    ]
    text = printed(*given, "--nodes", "2", "--gpus-per-node", "1", "--finetune")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert directives(text)["output"] == "out put/`x`/slurm-%j.out" and directives(text)[
        "chdir"
    ] == str(folder)
    code, _, err = Job(tmp_path, text).faked().run(FAKE_RUN="args")
    assert code == 0, err
    for node in ("0", "1"):
        words = json.loads((folder / "out put" / "`x`" / f"args{node}.json").read_text())
        launcher, training = (
            words[: words.index(str(ROOT / "finetune.py"))],
            words[words.index("--recipe") :],
        )
        assert training == given
        assert launcher == [
            *(
                "-m",
                "accelerate.commands.launch",
                "--machine_rank",
                node,
                "--main_process_ip",
                "127.0.0.1",
            ),
            *(
                "--main_process_port",
                "20071",
                "--config_file",
                str(ROOT / "tools" / "accelerate" / "nodes.yaml"),
            ),
            *("--num_machines", "2", "--num_processes", "2"),
        ]


def test_a_folder_a_seed(tmp_path, printed):
    text = printed(
        "--nodes",
        "1",
        "--gpus-per-node",
        "1",
        "--array",
        "0-3:3,7%2",
        "--output",
        f"{tmp_path}/all 100%",
    )
    assert directives(text)["array"] == "0-3:3,7%2"
    assert directives(text)["output"] == f"{tmp_path}/all 100%%/slurm-%A_%a.out"
    # the last of an array's jobs has the array's own id, which alone would requeue all of them
    array = {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "7"}
    job = Job(tmp_path, text, nodes=1).faked()
    process = job.start(FAKE_RUN="train", **array)
    wait_for((tmp_path / "all 100%" / "seed7" / "args0.json").exists, process)
    process.send_signal(signal.SIGUSR1)
    assert finish(process)[0] == 0 and job.requeued() == [["requeue", "71_7"]]
    words = json.loads((tmp_path / "all 100%" / "seed7" / "args0.json").read_text())
    assert words[-2:] == ["--set", "seed=7"]
    assert (
        submit.seeds("0-3:3,7%2") == [0, 3, 7]
        and submit.seeds("4") == [4]
        and submit.seeds(None) == []
    )


# ---- how a job ends, with a fake launcher --------------------------------------------------------


@pytest.fixture
def job(tmp_path, printed) -> Job:
    return Job(
        tmp_path, printed("--nodes", "2", "--gpus-per-node", "1", "--output", str(tmp_path / "run"))
    ).faked()


def started(job: Job, process: subprocess.Popen) -> list[int]:
    """Wait until both nodes train; the process ids of the tasks that srun started."""
    wait_for(
        lambda: all((job.folder / "run" / f"args{node}.json").exists() for node in (0, 1)), process
    )
    srun = next(line.split()[0] for line in _children(process.pid) if "fake_slurm" in line)
    return [int(line.split()[0]) for line in _children(srun)]


def _children(parent: int | str) -> list[str]:
    # -ww: complete lines, however long the paths are
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("kind", ["train", "deaf"])
def test_a_warning_saves_and_requeues_also_while_starting(job, kind):
    process = job.start(FAKE_RUN=kind)
    started(job, process)
    process.send_signal(signal.SIGUSR1)
    code, out, err = finish(process)
    assert code == 0 and "job 71 was preempted and has saved" in out, err
    assert job.requeued() == [["requeue", "71"]]
    code, out, _ = job.run(FAKE_RUN="finish")
    assert code == 0 and "start 2" in out and len(job.requeued()) == 1


def test_slurm_preempts_its_tasks_with_term(job):
    process = job.start(FAKE_RUN="train")
    for task in started(
        job, process
    ):  # the launchers below them are not told, or they would end their workers
        os.kill(task, signal.SIGTERM)
    assert finish(process)[0] == 0 and job.requeued() == [["requeue", "71"]]


def test_a_cancelled_job_saves_and_stays_away(job):
    process = job.start(FAKE_RUN="train")
    for pid in (*started(job, process), process.pid):
        os.kill(pid, signal.SIGTERM)
    assert finish(process)[0] == 1 and job.requeued() == []
    assert json.loads((job.folder / "run" / "summary.json").read_text())["exit"] == "preempted"


def test_a_failing_run_is_not_requeued_even_after_a_preempted_one(job):
    (job.folder / "run").mkdir()
    (job.folder / "run" / "summary.json").write_text('{\n "exit": "preempted"\n}\n')
    assert job.run(FAKE_RUN="fail")[0] == 1 and job.requeued() == []


def test_a_requeue_that_is_refused_is_said(job):
    process = job.start(FAKE_RUN="train", FAKE_REQUEUE_CODE="1")
    started(job, process)
    process.send_signal(signal.SIGUSR1)
    code, _, err = finish(process)
    assert code == 75 and "job 71 could not be requeued; submit it again to resume" in err


# ---- with the real launcher and training ---------------------------------------------------------


def test_two_nodes_preempted_and_requeued_give_the_losses_of_one_process(tmp_path, printed):
    overrides, folder = short(60), tmp_path / "nodes"
    job = Job(
        tmp_path,
        printed("--nodes", "2", "--gpus-per-node", "1", "--output", str(folder), *sets(overrides)),
    )
    process = job.start()
    wait_for(lambda: len(log.read_metrics(folder)) >= 5, process)
    process.send_signal(signal.SIGUSR1)
    code, out, err = finish(process, timeout=600)
    assert code == 0 and "machine: 2 processes" in out and "job 71 was preempted" in out, err
    assert job.requeued() == [["requeue", "71"]]
    summary = json.loads((folder / "summary.json").read_text())
    assert (
        summary["exit"] == "preempted"
        and (folder / "checkpoints" / f"step_{summary['steps']:08d}").is_dir()
    )
    code, out, err = job.run()
    assert (
        code == 0 and f"resumes from step {summary['steps']}" in out and "finished: top1" in out
    ), err
    assert len(job.requeued()) == 1
    expected = losses(train(tmp_path / "alone", *overrides))
    assert len(expected) == 60
    assert losses(log.read_metrics(folder)) == pytest.approx(expected, rel=0, abs=5e-6)


def test_one_process_with_the_file_for_one_gpu_finishes_or_fails_for_good(tmp_path, printed):
    config = ("--config-file", str(ROOT / "tools" / "accelerate" / "gpu1.yaml"))
    few = ("--nodes", "1", "--gpus-per-node", "1", *config, "--output", str(tmp_path / "run"))
    job = Job(tmp_path, printed(*few, *sets(short(2))), nodes=1)
    code, out, err = job.run()
    assert code == 0 and "machine: 1 process" in out and "finished: top1" in out, err
    job.text = printed(*few, *sets(short(2, "data.classes=7")))
    code, _, err = job.run()
    assert code == 1 and "holds a run of another recipe (data.classes: 10 -> 7)" in err
    assert (
        job.requeued() == []
        and json.loads((tmp_path / "run" / "summary.json").read_text())["exit"] == "finished"
    )
