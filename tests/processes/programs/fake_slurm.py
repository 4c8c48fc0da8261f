"""What SLURM's commands do that a batch script sees, with every node on this machine: srun,
scontrol, sbatch.

`install(folder)` puts them into a folder for PATH; what sbatch and `scontrol requeue` are told is
kept beside it. Seen of the real ones (22.05): srun passes USR1 and TERM on to its tasks, and
returns the highest of their codes.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def install(folder: Path) -> Path:
    """The commands, in a new folder `bin` below."""
    (folder / "bin").mkdir()
    for name in ("srun", "scontrol", "sbatch"):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(0o755)
    return folder / "bin"


def told(folder: Path, name: str) -> list[list[str]]:
    """The arguments of each call of a command."""
    log = folder / "bin" / f"{name}.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def srun(words: list[str]) -> int:
    while words[0].startswith("-"):
        words = words[1:]
    tasks = []

    def forward(number, _):
        for task in tasks:
            task.send_signal(number)  # to the task alone, as with proctrack/cgroup

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, forward)
    for node in range(int(os.environ["SLURM_NNODES"])):
        tasks.append(subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": str(node)}))
    codes = [task.wait() for task in tasks]
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Python would take its handlers back and die of it
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(["127.0.0.1"] * int(os.environ["SLURM_NNODES"])))
        return 0
    return int(os.environ.get("FAKE_REQUEUE_CODE", 0))


def sbatch(words: list[str]) -> int:
    if "FAKE_SBATCH_ERROR" in os.environ:
        print(os.environ["FAKE_SBATCH_ERROR"], file=sys.stderr)
        return 1
    print("Submitted batch job 71")
    return 0


if __name__ == "__main__":
    command, arguments = sys.argv[1], sys.argv[2:]
    if arguments[:1] != ["show"]:
        with open(Path(os.environ["FAKE_SLURM"]) / f"{command}.log", "a") as log:
            log.write(json.dumps(arguments) + "\n")
    sys.exit({"srun": srun, "scontrol": scontrol, "sbatch": sbatch}[command](arguments))
