"""Stands for `accelerate launch` and one worker, in milliseconds: who is told what, and how a run
ends.

As torchrun does: the worker has a session of its own, every bad end is code 1, and TERM ends the
worker with it. FAKE_RUN says what the worker does: "train" until a signal, then save; "deaf"
likewise, but listens a second later; "fail" at once; "finish" at once; "args" writes its arguments
to the output folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def launcher() -> int:
    worker = subprocess.Popen(
        [sys.executable, *sys.argv], env={**os.environ, "WORKER": "1"}, start_new_session=True
    )

    def term(*_):
        worker.kill()
        os._exit(1)

    signal.signal(signal.SIGTERM, term)
    return 1 if worker.wait() else 0


def worker(words: list[str]) -> int:
    heard: list[int] = []
    kind, rank = os.environ["FAKE_RUN"], words[words.index("--machine_rank") + 1]
    folder = Path(words[words.index("--output") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"args{rank}.json").write_text(json.dumps(words))
    if kind == "deaf":
        time.sleep(1)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: heard.append(number))
    if kind == "fail":
        return 1
    deadline = time.monotonic() + 60
    while kind in ("train", "deaf") and not heard and time.monotonic() < deadline:
        time.sleep(0.02)
    if rank == "0":
        summary = {"exit": "preempted" if heard else "finished", "time": time.time()}
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return 75 if heard else 0


if __name__ == "__main__":
    sys.exit(worker(sys.argv[1:]) if "WORKER" in os.environ else launcher())
