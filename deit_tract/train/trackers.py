"""TensorBoard and Weights & Biases: the numbers of metrics.jsonl, shown by other programs."""

import os
import secrets
from pathlib import Path
from typing import Any

from deit_tract.common.errors import UserError
from deit_tract.common.files import write_atomic
from deit_tract.common.text import brief
from deit_tract.recipe.settings.recipe import Recipe


class TensorBoard:
    """Event files in a run's folder, below its recipe's name."""

    def __init__(self, recipe: Recipe, folder: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        # as in metrics.jsonl, what a killed run wrote after its last checkpoint is dropped
        self.writer = SummaryWriter(folder / recipe.name, purge_step=start + 1)
        self.place = f"tensorboard --logdir {folder}"

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, the same one whenever the folder's run resumes.

    Its variables choose the rest: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline. Steps that a
    killed run had logged after its last checkpoint keep their first values there.
    """

    def __init__(self, recipe: Recipe, folder: Path, start: int):
        import wandb

        kept = folder / "wandb_id"
        if not kept.exists():
            write_atomic(kept, secrets.token_hex(4))
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "deit_tract"),
                name=folder.resolve().name,
                id=kept.read_text().strip(),
                resume="allow",
                dir=folder,
                config=recipe.model_dump(mode="json"),
                # its own lines would break the progress bar
                settings={"console": "off", "silent": True},
            )
        except Exception as error:  # no login, no network, a refused name, ...
            instead = "run `wandb login`, set WANDB_MODE=offline, or drop it from log.trackers"
            raise UserError("log.trackers", f"wandb: {brief(error)}", instead) from None
        self.place = f"wandb sync {folder}/wandb/offline-run-*"
        if not self.run.offline:
            self.place = self.run.url

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB}
