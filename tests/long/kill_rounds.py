"""kill -9 to one of two training processes: `python tests/long/kill_rounds.py [--rounds 20] [--seed
0]`.

Each round trains the shortened quickstart in a folder of its own and kills a random process at a
random moment, during saving or during evaluation. Then all are trained to their end, and weights,
moving average and metrics are compared with those of a run that nobody disturbed. Prints two lines
for each round and the count; the exit code is 1 if one differs.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deit_tract.train import log
from tests.helpers.processes import command, finish, sets, workers, worlds
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
    with tempfile.TemporaryDirectory() as temporary:
        equal = rounds(Path(temporary), arguments.rounds, arguments.seed)
    print(f"{equal} of {arguments.rounds} equal")
    return int(equal < arguments.rounds)


def rounds(folder: Path, count: int, seed: int) -> int:
    """How many of the killed runs end as the undisturbed one; a line for each."""
    for number in range(count):
        moment = MOMENTS[number % len(MOMENTS)]
        what = kill_one(folder / str(number), moment, random.Random(f"{seed}/{number}"))
        step = newest_step(folder / str(number))
        print(f"round {number}: {what}; to resume from step {step}", flush=True)
    names = ["undisturbed", *map(str, range(count))]
    worlds(folder, [(name, 2, OVERRIDES) for name in names], timeout=120 * len(names))
    expected = result(folder / "undisturbed")
    equal = [result(folder / str(number)) == expected for number in range(count)]
    for number in range(count):
        print(f"round {number}: {'equal' if equal[number] else 'DIFFERENT'}")
    return sum(equal)


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("checkpoints/step_*")), default=0)


if __name__ == "__main__":
    sys.exit(main())
