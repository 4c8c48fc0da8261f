"""Evaluate a trained model on a data set: top-1, top-5, loss, speed; on request per class, calibration, confusion.

Of a detector: mean average precision as VOC2007 defines it, on request per class.

python tools/evaluate.py runs/quickstart                                    on the run's own data set
python tools/evaluate.py runs/vit_s_800ep_tract --ema --data imagenet --data-dir IMAGENET --real real.json
python tools/evaluate.py deit_3_small_224_1k.pth --model deit3_small_patch16_224 --data imagenet --data-dir IMAGENET
torchrun --nproc_per_node 8 tools/evaluate.py timm:deit3_small_patch16_224.fb_in1k --data imagenet_v2 --data-dir V2

Any number of processes (torchrun, or accelerate launch) counts each image once.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from accelerate import Accelerator
from tqdm import tqdm

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.common.files import write_atomic
from deit_tract.data.sets.imagenet import class_names, described
from deit_tract.data.sets.imagenet_labels import real_answers
from deit_tract.data.sets.load import load_validation
from deit_tract.evaluators import measures
from deit_tract.evaluators.classification import Predictions, in_order
from deit_tract.recipe.datasets import DATASETS, TRAINABLE
from deit_tract.recipe.settings.recipe import Data, Evaluate
from deit_tract.results import report, trained
from deit_tract.results.detection_report import Detection
from deit_tract.results.trained import Trained
from deit_tract.train.evaluate import evaluate_by, shares

DATA = tuple(DATASETS)


def parser() -> Parser:
    arguments = Parser(description=__doc__)
    add = arguments.add_argument
    add(
        "source",
        metavar="RUN|FILE|timm:NAME",
        help="a run, a checkpoint or exported folder, a file of weights, timm's",
    )
    add("--data", choices=DATA, help="data set (default: the run's own)")
    add("--data-dir", metavar="DIR", help="where it lies")
    add("--no-verify", action="store_true", help="accept a part of a data set")
    add(
        "--real",
        metavar="FILE",
        type=Path,
        help="ReaL's real.json: also count any of its labels as right (imagenet)",
    )
    add("--model", metavar="NAME", help="timm's name of what FILE holds, or")
    add("--recipe", metavar="NAME|FILE", help="the recipe that FILE was trained by")
    add(
        "--step",
        metavar="N",
        type=int,
        help="the run's checkpoint of this step (default: the newest)",
    )
    add("--ema", action="store_true", help="the run's averaged weights")
    add("--image-size", metavar="PX", type=int, help="instead of the model's own")
    add(
        "--crop",
        metavar="FRACTION",
        type=float,
        help="centre crop as a fraction of the resized side",
    )
    add(
        "--precision",
        choices=("float32", "bf16", "fp16"),
        help="default: the run's own, else float32",
    )
    add("--batch-size", metavar="N", type=int, help="images per process and forward")
    add("--workers", metavar="N", type=int, help="loader processes per process")
    add(
        "--per-class",
        metavar="FILE.csv",
        nargs="?",
        const="",
        help="a table of the classes, printed or as a file",
    )
    add(
        "--calibration",
        action="store_true",
        help="expected calibration error, 15 bins of the softmax confidence",
    )
    add("--confusion", metavar="FILE.png", type=Path, help="draw which class is taken for which")
    add("--json", metavar="FILE", type=Path, help="everything as JSON")
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raises what is wrong with the arguments alone, before anything is read."""
    for key, low in (("image_size", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(arguments, key) is not None and getattr(arguments, key) < low:
            raise UserError(
                f"--{key.replace('_', '-')}", f"{getattr(arguments, key)} is below {low}"
            )
    if arguments.crop is not None and not 0 < arguments.crop <= 1:
        raise UserError(
            "--crop", f"{arguments.crop} is no fraction", "give a number above 0, at most 1"
        )
    if arguments.per_class and not arguments.per_class.endswith(".csv"):
        raise UserError(
            "--per-class", f"{arguments.per_class} is no .csv file", "put RUN before the options"
        )
    if arguments.real and arguments.data not in (None, "imagenet"):
        raise UserError(
            "--real", "its labels are for ImageNet's validation images", "give --data imagenet"
        )
    for file in (Path(arguments.per_class or ""), arguments.confusion, arguments.json):
        if file is not None and not file.parent.is_dir():
            raise UserError(file, "its folder does not exist", "make it first")


def choose(arguments: argparse.Namespace) -> tuple[Trained, str, Data]:
    """The model, the data set's name and its settings."""
    keys = ("model", "recipe", "ema", "step", "image_size", "crop")
    model = trained.find(
        arguments.source, trained.Choice(**{key: getattr(arguments, key) for key in keys})
    )
    own = model.recipe.data if model.recipe else None
    name = arguments.data or (own and own.name)
    if name is None:
        raise UserError("command line", "--data is missing", f"give one of {', '.join(DATA)}")
    values: dict[str, Any] = {"name": name if name in TRAINABLE else "imagenet"}
    if own is None or own.name != name:
        values |= {"dir": None, "verify": True}
    if arguments.data_dir is not None:
        values["dir"] = arguments.data_dir
    if arguments.no_verify:
        values["verify"] = False
    if arguments.workers is not None:
        values["workers"] = arguments.workers
    elif own is None:
        values["workers"] = min(Data.model_fields["workers"].default, os.cpu_count() or 1)
    return model, name, model.data(**values)


def start(precision: str | None) -> Accelerator:
    """The Accelerator of the processes that were started. Raises UserError where there is no such precision."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision", "fp16 needs a CUDA GPU", "give --precision float32 or bf16")
    mixed = "no" if precision in (None, "float32") else precision
    return Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed)


class Classification:
    """The evaluation of a classifier; that of a detector, `Detection`, has the same two methods."""

    def __init__(self, arguments: argparse.Namespace, model: Trained, name: str, data: Data):
        self.arguments, self.model, self.data = arguments, model, data
        self.images = load_validation(data, name=name)
        self.answers = (
            real_answers(arguments.real, self.images, data.verify) if arguments.real else None
        )

    def measure(self, accelerator: Accelerator, size: int) -> dict[str, Any]:
        """Every number that is asked for, the same on every process; writes nothing."""
        mine = len(range(accelerator.process_index, len(self.images), accelerator.num_processes))
        show = None if accelerator.is_main_process else True
        with tqdm(total=mine, unit=" images", unit_scale=True, disable=show) as bar:
            task = Predictions(self.images, self.model.transform, bar.update)
            net = self.model.net.to(accelerator.device)
            begin = time.perf_counter()
            cast, workers = accelerator.autocast, self.data.workers
            found: dict[str, Any] = evaluate_by(task, net, accelerator, size, workers, cast)
            found["images_per_s"] = found["count"] / (time.perf_counter() - begin)
        samples = in_order(shares(task.kept(), accelerator))
        return found | self._details(samples)

    def _details(self, samples: measures.Samples) -> dict[str, Any]:
        arguments, found = self.arguments, {}
        if self.answers is not None:
            found |= measures.any_of(samples, self.answers)
        if arguments.per_class is not None or arguments.confusion:
            names = described(class_names(self.images, self.data.classes))
        if arguments.per_class is not None:
            found["per_class"] = measures.per_class(samples, names)
        if arguments.calibration:
            found["ece"], bins = measures.calibration(samples)
            found["calibration"] = [row._asdict() for row in bins]
        if arguments.confusion:
            found["classes"], found["confusion"] = (
                names,
                measures.confusion(samples, len(names)).tolist(),
            )
        return found

    def report(self, found: dict[str, Any]) -> str:
        """The numbers as text; writes the files that are asked for."""
        lines = [
            f"top-1 {found['top1']:.2f} %, top-5 {found['top5']:.2f} %, loss {found['val_loss']:.4f}"
        ]
        lines[0] += f" on {found['count']:,} images"
        if "real_count" in found:
            lines.append(
                f"ReaL: top-1 {found['real_top1']:.2f} %, top-5 {found['real_top5']:.2f} %"
            )
            lines[-1] += f" on {found['real_count']:,} images"
        if "ece" in found:
            lines += [
                f"expected calibration error {found['ece']:.2f} %",
                "",
                report.bins(found["calibration"]),
            ]
        if "per_class" in found:
            lines += report.per_class(found["per_class"], self.arguments.per_class)
        if "confusion" in found:
            lines += report.confused(found["classes"], found["confusion"], self.arguments.confusion)
        return "\n".join(lines)


def main() -> None:
    arguments = parser().parse_args()
    check(arguments)
    model, name, data = choose(arguments)
    recipe = model.recipe
    kind = Detection if recipe and recipe.task == "detect" else Classification
    task = kind(arguments, model, name, data)
    precision = arguments.precision or (recipe and recipe.precision.autocast) or "float32"
    accelerator = start(precision)
    own = recipe.evaluate.batch_size if recipe else Evaluate().batch_size
    found = task.measure(accelerator, arguments.batch_size or own)
    if accelerator.is_main_process:
        where = {
            "source": arguments.source,
            "model": model.name,
            "step": model.step,
            "ema": arguments.ema,
            "data": name,
        }
        where |= {
            "data_dir": data.dir,
            "image_size": data.image_size,
            "crop": model.crop,
            "precision": precision,
        }
        where |= {"device": accelerator.device.type, "processes": accelerator.num_processes}
        step = (
            ""
            if model.step is None
            else f" at step {model.step:,}{' (averaged weights)' if arguments.ema else ''}"
        )
        print(
            f"{arguments.source}{step}: {model.name} on {name}, {data.image_size} px, crop {model.crop:g}"
        )
        print(task.report(found))
        speed = f"{found['images_per_s']:,.0f} images/s, reading and decoding included"
        print(f"{speed}: {where['processes']} process(es), {where['device']}, {precision}")
        if arguments.json:
            write_atomic(arguments.json, json.dumps(where | found, indent=1) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    script(main)
