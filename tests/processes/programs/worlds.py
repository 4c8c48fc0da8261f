"""Runs on different numbers of processes, one after another: `worlds.py JOBS.json`, a list of
[folder, processes, recipe, overrides]. What they import is imported once; each run's processes are
forked and find each other over gloo.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch

from deit_tract.recipe.resolve import load_recipe
from deit_tract.train import loop


def process(
    folder: str, name: str, overrides: list[str], rank: int, processes: int, port: int
) -> None:
    """One process of a run, as torchrun would start it; never returns."""
    code = 1
    try:
        if processes > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        loop.train(load_recipe(name, overrides), Path(folder))
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(folder: str, processes: int, name: str, overrides: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            process(folder, name, overrides, rank, processes, port)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{folder}: exit codes {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(*job)
