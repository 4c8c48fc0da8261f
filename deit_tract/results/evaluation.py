"""A trained model evaluated by the evaluators of training, as tools/evaluate.py prints it."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deit_tract.common.errors import UserError
from deit_tract.common.files import write_atomic
from deit_tract.data.feed import Source
from deit_tract.data.sets.imagenet import described, synsets
from deit_tract.data.sets.imagenet_labels import real_answers
from deit_tract.data.sets.load import load_validation
from deit_tract.evaluators import measures
from deit_tract.evaluators.classification import Classification
from deit_tract.evaluators.detection import Detection
from deit_tract.recipe.datasets import DATASETS, TRAINABLE, names_for
from deit_tract.recipe.settings.recipe import Data, Evaluate
from deit_tract.results import report
from deit_tract.results.inference import Computing, batch_size_of, precision_of, workers_of
from deit_tract.results.trained import Trained, load_trained
from deit_tract.train.evaluate import evaluate, start_processes

DATA = tuple(DATASETS)


@dataclass(frozen=True, kw_only=True)
class Request(Computing):
    """The options of tools/evaluate.py: what to evaluate on what. None leaves it to the source."""

    data: str | None = None
    data_dir: str | None = None
    no_verify: bool = False
    real: Path | None = None
    per_class: Path | bool = False  # a .csv file; True prints the table
    calibration: bool = False
    confusion: Path | None = None
    json: Path | None = None

    def __post_init__(self):
        """Raises UserError for options that contradict each other, before anything is read."""
        if self.real and self.data not in (None, "imagenet"):
            what = "its labels are for ImageNet's validation images"
            raise UserError("--real", what, "give --data imagenet")
        given = (self.table, self.confusion, self.json)
        files = [file for file in given if file is not None]
        if len({os.path.realpath(file) for file in files}) < len(files):
            what = "two options name the same file to write"
            raise UserError("command line", what, "give each a file of its own")

    @property
    def table(self) -> Path | None:
        """The file of the classes' table; None if it is printed or not asked for."""
        return None if isinstance(self.per_class, bool) else self.per_class


def evaluate_trained(request: Request) -> str | None:
    """Evaluate and write the files that are asked for. Returns text, on process 0 only."""
    model = load_trained(request.source, request)
    name, data = data_of(request, model)
    recipe = model.recipe
    kind = DetectorResults if recipe and recipe.task == "detect" else ClassifierResults
    results = kind(request, model, name, data)
    kept = precision_of(model, request.precision)
    precision = kept or "float32"
    accelerator = start_processes(precision)
    found = _measure(results, model, accelerator, kept)
    about = {
        "source": request.source,
        "model": model.name,
        "step": model.step,
        "best": request.best,
        "ema": request.ema,
        "data": name,
        "data_dir": data.dir,
        "image_size": data.image_size,
        "crop": model.crop,
        "precision": precision,
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
    }
    text = None
    if accelerator.is_main_process:
        speed = f"{found['images_per_s']:,.0f} images/s, reading and decoding included"
        machine = f"{about['processes']} process(es), {about['device']}, {precision}"
        text = "\n".join([_title(about), *results.lines(found), f"{speed}: {machine}"])
        if request.json:
            write_atomic(request.json, json.dumps(about | found, indent=1) + "\n")
    accelerator.end_training()
    return text


def _title(about: dict[str, Any]) -> str:
    step = "" if about["step"] is None else f" at step {about['step']:,}"
    if step and about["best"]:
        step += ", chosen as the best on the run's validation images"
    if step and about["ema"]:
        step += " (averaged weights)"
    images = f"{about['data']}, {about['image_size']} px, crop {about['crop']:g}"
    return f"{about['source']}{step}: {about['model']} on {images}"


def _settings(request: Request, model: Trained) -> Evaluate:
    return Evaluate(batch_size=batch_size_of(model, request.batch_size))


def data_of(request: Any, model: Trained) -> tuple[str, Data]:
    """The name of the data set that `--data`, `--data-dir` and `--no-verify` ask for, its settings.

    Without `--data` it is the run's own.
    """
    own = model.recipe.data if model.recipe else None
    name = request.data or (own and own.name)
    if name is None:
        raise UserError("command line", "--data is missing", f"give one of {', '.join(DATA)}")
    values: dict[str, Any] = {"name": name if name in TRAINABLE else "imagenet"}
    if own is None or own.name != name:
        values |= {"dir": None, "verify": True}
    if request.data_dir is not None:
        values["dir"] = request.data_dir
    if request.no_verify:
        values["verify"] = False
    values["workers"] = workers_of(model, request.workers)
    return name, model.data(**values)


class ClassifierResults:
    """What is asked for of a classifier; `DetectorResults` has the same methods."""

    def __init__(self, request: Request, model: Trained, name: str, data: Data):
        self.request = request
        self.images = load_validation(data, name=name)
        self.answers = None
        if request.real:
            self.answers = real_answers(request.real, self.images, data.verify)
        source = Source(self.images, model.transform)
        settings = _settings(request, model)
        self.evaluator = Classification(source, settings, data.workers, keep=True)

    def details(self) -> dict[str, Any]:
        """What is asked for beside the metrics, after an evaluation."""
        request, samples, found = self.request, self.evaluator.samples, {}
        if self.answers is not None:
            found |= measures.any_of(samples, self.answers)
        names: list[str] = []
        if request.per_class or request.confusion:
            names = described(synsets(self.images))
        if request.per_class:
            found["per_class"] = measures.per_class(samples, names)
        if request.calibration:
            found["ece"], bins = measures.calibration(samples)
            found["calibration"] = [row._asdict() for row in bins]
        if request.confusion:
            found["classes"] = names
            found["confusion"] = measures.confusion(samples, len(names)).tolist()
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """The numbers as text; writes the table and the picture that are asked for."""
        accuracy = f"top-1 {found['top1']:.2f} %, top-5 {found['top5']:.2f} %"
        lines = [f"{accuracy}, loss {found['val_loss']:.4f} on {found['count']:,} images"]
        if "real_count" in found:
            accuracy = f"top-1 {found['real_top1']:.2f} %, top-5 {found['real_top5']:.2f} %"
            lines.append(f"ReaL: {accuracy} on {found['real_count']:,} images")
        if "ece" in found:
            lines += [f"expected calibration error {found['ece']:.2f} %", ""]
            lines.append(report.bins(found["calibration"]))
        if "per_class" in found:
            lines += report.per_class(found["per_class"], self.request.table)
        if "confusion" in found:
            lines += report.confused(found["classes"], found["confusion"], self.request.confusion)
        return lines


class DetectorResults:
    """What is asked for of a detector, on the validation split of its recipe."""

    def __init__(self, request: Request, model: Trained, name: str, data: Data):
        """Raises UserError for what only classifiers have, and if the data has no boxes."""
        for option in ("real", "calibration", "confusion"):
            if getattr(request, option):
                what = f"{model.source} is a detector"
                raise UserError(f"--{option}", what, f"leave out --{option}")
        known = names_for("detect")
        if name not in known:
            raise UserError(f"--data {name}", "has no boxes", f"give one of {', '.join(known)}")
        self.request = request
        self.class_names = model.recipe.detect.class_names
        photos = load_validation(data, model.recipe.detect)
        settings = _settings(request, model)
        self.evaluator = Detection(photos, self.class_names, settings, data.workers)

    def details(self) -> dict[str, Any]:
        if not self.request.per_class:
            return {}
        rows = []
        for name, precision in zip(self.class_names, self.evaluator.precisions, strict=True):
            row = {"class": name} | precision._asdict()
            for key in ("ap07", "area"):
                row[key] = 100 * row[key] if row["objects"] else None
            rows.append(row)
        return {"per_class": rows}

    def lines(self, found: dict[str, Any]) -> list[str]:
        precision = f"mAP07 {found['map07']:.2f} %, area {found['map_area']:.2f} %"
        lines = [f"{precision}, {found['detections']:,} detections on {found['count']:,} images"]
        if "per_class" not in found:
            return lines
        if not self.request.table:
            return [*lines, "", self.evaluator.table()]
        report.write_csv(found["per_class"], self.request.table)
        return [*lines, f"{self.request.table}: {len(found['per_class'])} classes"]


def _measure(
    results: ClassifierResults | DetectorResults, model: Trained, accelerator, precision: str | None
) -> dict[str, Any]:
    """Every number that is asked for, the same on every process; writes nothing."""
    evaluator = results.evaluator
    count = len(evaluator.source.images)
    mine = len(range(accelerator.process_index, count, accelerator.num_processes))
    hidden = None if accelerator.is_main_process else True
    with tqdm(total=mine, unit=" images", unit_scale=True, disable=hidden) as bar:
        net = model.net.to(accelerator.device)
        begin = time.perf_counter()
        metrics = evaluate(evaluator, net, accelerator, precision, progress=bar.update)
        seconds = time.perf_counter() - begin
    return {"count": count} | metrics | {"images_per_s": count / seconds} | results.details()
