"""Short training runs in this process."""

from pathlib import Path

import pytest

from deit_tract.recipe.resolve import load_recipe

# A log line for each step, no evaluation and no checkpoint before the end
SHORT = ("log.every_steps=1", "evaluate.every_epochs=1000", "save.every_epochs=1000")
# Fields of metrics.jsonl that depend on the machine, not on the run
VOLATILE = ("images_per_s", "data_wait", "mfu", "memory_gib")


def short(steps: int, *more: str) -> list[str]:
    """Overrides for a run of so many steps; the warm-up shrinks along."""
    return [*SHORT, f"schedule.steps={steps}", f"schedule.warmup_steps={min(steps, 100)}", *more]


def train(
    folder: Path, *overrides: str, recipe: str = "quickstart", data_dir: str | None = None
) -> list[dict]:
    """Train in this process; the records of metrics.jsonl."""
    from deit_tract.train import log, loop

    loop.train(load_recipe(recipe, overrides, data_dir), folder)
    return log.read_metrics(folder)


def train_until(step: int, monkeypatch, folder: Path, *overrides: str) -> None:
    """Train in this process and interrupt it before its optimizer step `step`, from 0."""
    from deit_tract.train import loop

    whole = loop.Run.optimizer_step

    def stopping(self, now, batches):
        if now == step:
            raise KeyboardInterrupt
        return whole(self, now, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Run, "optimizer_step", stopping)
        train(folder, *overrides)


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]
