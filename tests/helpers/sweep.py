"""Sets of runs for tests, and a script that plays their training."""

import sys
from pathlib import Path

import yaml

from deit_tract.results.sweep.definition import Definition, Sweep, make_sweep

# A training of four steps with a checkpoint each. It saves and ends at SIGTERM; a file FAIL ends it
# with an error, a file KILL with a signal after two steps; STARTS counts its starts.
TRAINING = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
seed = int(folder.name.removeprefix("seed"))
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with open(folder / "STARTS", "a") as file:
    file.write("x")
if (folder / "FAIL").exists():
    sys.exit("error: data: not there")
def summary(end, step):
    final = {"top1": 50.0 + seed, "step": step, "epoch": 1.0}
    values = {"exit": end, "steps": step, "seconds": 1.0, "final": final}
    (folder / "summary.json").write_text(json.dumps(values))
for step in range(len(list(folder.glob("checkpoints/step_*"))) + 1, 5):
    time.sleep(0.05)
    if step == 3 and (folder / "KILL").exists():
        (folder / "KILL").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"checkpoints/step_{step:08d}").mkdir(parents=True)
    if stopped:
        summary("preempted", step)
        sys.exit(75)
summary("finished", 4)
"""


def training(folder: Path) -> list[str]:
    """The command that plays a run."""
    return [sys.executable, "-c", TRAINING, str(folder)]


def make(folder: Path, **values) -> Sweep:
    """A set of the quickstart with a few seeds."""
    values = {"recipes": ["quickstart"], "seeds": "0-2", "rows": ""} | values
    return make_sweep("test", Definition.model_validate(values), folder)


def write_sets(path: Path, **sets) -> Path:
    path.write_text(yaml.safe_dump(sets))
    return path


def starts(sweep: Sweep) -> list[int]:
    """How often each run was started."""
    files = [member.folder / "STARTS" for member in sweep.members]
    return [len(file.read_text()) if file.exists() else 0 for file in files]
