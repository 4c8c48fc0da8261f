"""kill -9 to one of two training processes, again and again: `python tests/long/kill_rounds.py [--rounds 20] [--seed 0]`.

Each round trains the shortened quickstart in a folder of its own, kills a random process at a random moment, during
saving or during evaluation, starts the same command again until it ends, and compares weights, moving average and
metrics with those of a run that nobody disturbed. Prints a line a round and the count; exit code 1 where one differs.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deit_tract.train import log
from tests.helpers.processes import command, finish, sets, workers
from tests.helpers.runs import VOLATILE, short

STEPS = 40
OVERRIDES = short(STEPS, "save.every_steps=6", "evaluate.every_steps=7", "ema.decay=0.9")
MOMENTS = ("anywhere", "saving", "evaluating")


def start(folder: Path):
    return command("--recipe", "quickstart", "--output", str(folder), *sets(OVERRIDES), processes=2)


def wait_for(moment: str, folder: Path, process, rng: random.Random) -> None:
    """Until the run has begun and the moment has come, or the run has ended."""
    first, steps = rng.randrange(1, STEPS - 8), log.read_metrics
    while process.poll() is None and not any(record["step"] >= first for record in steps(folder)):
        time.sleep(0.01)
    while process.poll() is None and not is_now(moment, folder):
        time.sleep(0.0005)
    time.sleep(rng.random() * (0.3 if moment == "anywhere" else 0.02))


def is_now(moment: str, folder: Path) -> bool:
    if moment == "saving":
        return any((folder / "checkpoints").glob(".step_*.tmp"))
    records = log.read_metrics(folder)
    return moment == "anywhere" or (
        bool(records) and "loss" in records[-1] and records[-1]["step"] % 7 == 0
    )


def result(folder: Path) -> tuple:
    """What must be equal to the last bit."""
    last = folder / "checkpoints" / f"step_{STEPS:08d}"
    records = [
        {k: v for k, v in record.items() if k not in VOLATILE}
        for record in log.read_metrics(folder)
    ]
    return [
        (last / name).read_bytes() for name in ("model.safetensors", "ema.safetensors")
    ], records


def kill_one(folder: Path, moment: str, rng: random.Random) -> str:
    """Start, kill one of the two, wait for the launcher's end; what was done."""
    process = start(folder)
    wait_for(moment, folder, process, rng)
    victims = workers(process)
    if process.poll() is not None or len(victims) < 2:
        finish(process)
        return "came too late"
    rank = rng.randrange(2)
    victims[rank].kill()
    finish(process)
    step = max((record["step"] for record in log.read_metrics(folder)), default=0)
    return f"killed process {rank} while {moment}, at step {step}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        code, _, err = finish(start(whole))
        assert code == 0, err
        expected = result(whole)
        for number in range(arguments.rounds):
            rng, folder = random.Random(f"{arguments.seed}/{number}"), Path(temporary) / str(number)
            done = kill_one(folder, MOMENTS[number % len(MOMENTS)], rng)
            code, out, err = finish(start(folder))
            same = code == 0 and result(folder) == expected
            equal += same
            begin = next(
                (
                    line.rpartition("from step ")[2]
                    for line in out.splitlines()
                    if "from step" in line
                ),
                "0",
            )
            print(
                f"round {number}: {done}; went on from step {begin}: {'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
            if not same:
                print(err[-2000:], flush=True)
    print(f"{equal} of {arguments.rounds} equal")
    return int(equal < arguments.rounds)


if __name__ == "__main__":
    sys.exit(main())
