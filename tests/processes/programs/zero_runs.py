"""Runs of the quickstart under DeepSpeed in one launch, without transformers: `torchrun ...
zero_runs.py FOLDER`.

Each is a run folder FOLDER/NAME; a second train() of the same name goes on at another ZeRO stage or
without DeepSpeed.
"""

import importlib.abc
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


class WithoutTransformers(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, WithoutTransformers())

import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

from deit_tract.recipe.resolve import load_recipe  # noqa: E402
from deit_tract.train import loop  # noqa: E402
from tests.helpers.runs import short  # noqa: E402

PartialState.destroy_process_group = lambda self, group=None: None  # one launch for all the runs
ADAMW = ("optim.name=adamw", "optim.lr=1e-3", "optim.clip_grad=0.5", "schedule.warmup_lr=1e-4")


def go(
    folder: Path, name: str, stage: int | None, steps: int, *overrides: str, stop: int | None = None
) -> None:
    """Train to `steps`, or only to `stop` of them."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false" if stage is None else "true"
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(stage)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    agreed = loop.Stop.agreed
    if stop is not None:
        steps_done = iter(range(1, steps + 1))
        loop.Stop.agreed = lambda self: next(steps_done) == stop
    try:
        loop.train(load_recipe("quickstart", short(steps, *overrides)), folder / name)
    finally:
        loop.Stop.agreed = agreed


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    go(folder, "lamb, plain", None, 40)
    go(folder, "lamb, stage 0", 0, 40)
    go(folder, "lamb, batch Gram, plain", None, 10, "model.tract_gram=batch")
    go(folder, "lamb, batch Gram, stage 0", 0, 10, "model.tract_gram=batch")
    go(folder, "adamw, plain", None, 40, *ADAMW, "ema.decay=0.9")
    for stage in (1, 2, 3):
        go(folder, f"adamw, stage {stage}", stage, 40, *ADAMW, "ema.decay=0.9")
    for stage, then in ((0, 1), (1, None), (2, 3), (3, 2), (3, 3)):
        name = f"adamw, from stage {stage} to {then}"
        go(folder, name, stage, 20, *ADAMW, stop=10)
        go(folder, name, then, 20, *ADAMW)
    go(folder, "adamw, 20 steps", None, 20, *ADAMW)
    go(folder, "sgd, from stage 2 to 1", 2, 20, "optim.name=sgd", "optim.lr=0.1", stop=10)
    go(folder, "sgd, from stage 2 to 1", 1, 20, "optim.name=sgd", "optim.lr=0.1")
    go(folder, "sgd, 20 steps", None, 20, "optim.name=sgd", "optim.lr=0.1")
    for stage in (None, 0, 1, 2, 3):
        go(folder, f"bf16, stage {stage}", stage, 10, *ADAMW, "precision.autocast=bf16")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)  # many engines' threads are not joined one by one
