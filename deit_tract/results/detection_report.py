"""A detector's evaluation standing alone, as tools/evaluate.py prints it."""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.data.sets.load import load_validation
from deit_tract.evaluators.detection import table
from deit_tract.recipe.datasets import names_for
from deit_tract.recipe.settings.recipe import Data
from deit_tract.results.trained import Trained
from deit_tract.tasks.detect import Detect
from deit_tract.train.evaluate import evaluate_by


class Detection:
    """The evaluation of a detector on the validation split of its recipe."""

    def __init__(self, arguments: argparse.Namespace, model: Trained, name: str, data: Data):
        """Raises UserError for what only classifiers have, and where the data is not as it must be."""
        for option in ("real", "calibration", "confusion"):
            if getattr(arguments, option):
                raise UserError(
                    f"--{option}", f"{model.source} is a detector", f"leave out --{option}"
                )
        known = names_for("detect")
        if name not in known:
            raise UserError(f"--data {name}", "has no boxes", f"give one of {', '.join(known)}")
        self.arguments, self.model, self.data = arguments, model, data
        self.task = Detect(model.recipe, load_validation(data, model.recipe.detect))

    def measure(self, accelerator, size: int) -> dict[str, Any]:
        """Every number, the same on every process; writes nothing."""
        net = self.model.net.to(accelerator.device)
        begin = time.perf_counter()
        found: dict[str, Any] = {"count": len(self.task.val_data)}
        found |= evaluate_by(
            self.task, net, accelerator, size, self.data.workers, accelerator.autocast
        )
        found["images_per_s"] = found["count"] / (time.perf_counter() - begin)
        if self.arguments.per_class is not None:
            names = self.model.recipe.detect.class_names
            found["per_class"] = [
                {"class": name} | one._asdict()
                for name, one in zip(names, self.task.precisions, strict=True)
            ]
            for one in found["per_class"]:
                one |= {key: 100 * one[key] if one["objects"] else None for key in ("ap07", "area")}
        return found

    def report(self, found: dict[str, Any]) -> str:
        """The numbers as text; writes the table where a file is asked for."""
        lines = [f"mAP07 {found['map07']:.2f} %, area {found['map_area']:.2f} %"]
        lines[0] += f", {found['detections']:,} detections on {found['count']:,} images"
        if "per_class" in found and self.arguments.per_class:
            file = Path(self.arguments.per_class)
            with (
                disk_errors(file, "choose another file"),
                open(file, "w", newline="", encoding="utf-8") as out,
            ):
                writer = csv.DictWriter(out, found["per_class"][0])
                writer.writeheader()
                writer.writerows(found["per_class"])
            lines.append(f"{file}: {len(found['per_class'])} classes")
        elif "per_class" in found:
            lines += ["", table(self.model.recipe.detect.class_names, self.task.precisions)]
        return "\n".join(lines)
