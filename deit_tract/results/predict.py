"""What a trained model finds on images: classes, or a detector's boxes; as text, CSV, pictures."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.common.text import on_one_line, plural
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.sets.boxes import Photo, no_objects
from deit_tract.data.sets.images import Files
from deit_tract.evaluators.detection import DRAWN, Detection, drawn
from deit_tract.recipe.settings.recipe import Evaluate
from deit_tract.results.class_names import class_names
from deit_tract.results.inference import Computing, Numbered, Skipped, compute, find_images
from deit_tract.results.trained import Trained, load_trained

SMALLEST = 224  # pixels: a picture's width at least, so that a line of text has room


@dataclass(frozen=True, kw_only=True)
class Request(Computing):
    """The options of tools/predict.py."""

    images: list[str]
    top: int = 5
    csv: Path | None = None
    pictures: Path | None = None


class Prediction(NamedTuple):
    """What was found on an image."""

    index: int  # of the image
    line: str  # to print
    rows: list[tuple]  # of the CSV file, without the image's name
    record: Any = None  # for a detector's picture


def predict(request: Request) -> int:
    """Predict, print or write as asked, and return how many images could not be read.

    Rows, lines and pictures are written as they come. Raises UserError for what cannot be done.
    """
    model = load_trained(request.source, request)
    images = find_images(request.images, model.view["channels"])
    detects = model.recipe is not None and model.recipe.task == "detect"
    kind = Boxes if detects else Classes
    predictor = kind(model, images, request.top)
    picture = _pictures(request.pictures, images, predictor) if request.pictures else None
    skipped = Skipped()
    batches = compute(model, predictor.source, request, predictor.predict, skipped)
    with _table(request.csv, predictor.columns) as write_row:
        for prediction in (one for batch in batches for one in batch):
            name = images.name(prediction.index)
            if request.csv is None:
                tqdm.write(on_one_line(f"{name}: {prediction.line}"))
            for row in prediction.rows:
                write_row((name, *row))
            if picture is not None:
                picture(prediction)
    _conclude(request, len(images), skipped.count)
    return skipped.count


def _conclude(request: Request, count: int, skipped: int) -> None:
    places = [str(place) for place in (request.csv, request.pictures) if place is not None]
    if places:
        print(f"wrote {' and '.join(places)}: {plural(count - skipped, 'image')}")
    if skipped:
        print(f"skipped: {plural(skipped, 'image')} of {count:,} that cannot be read")


@contextmanager
def _table(file: Path | None, columns: tuple[str, ...]) -> Iterator:
    """Yield what writes a row; the file appears once it is complete."""
    if file is None:
        yield lambda row: None
        return
    part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(file, "name another file"):
            # a file's name may be no text
            how = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
            with open(part, "w", **how) as target:
                writer = csv.writer(target)
                writer.writerow(columns)
                yield writer.writerow
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


# ---- what is found -------------------------------------------------------------------------------


class Classes:
    """The best classes of an image, with their softmax probabilities."""

    columns = ("image", "rank", "class", "name", "probability")

    def __init__(self, model: Trained, images: Files, top: int):
        self.names = class_names(model)
        self.top = min(top, len(self.names))
        self.images = images
        self.source = Source(Numbered(images), model.transform)

    def predict(self, net: nn.Module, batch: Batch) -> list[Prediction]:
        logits = net(batch["image"]).float()
        best = logits.topk(self.top).indices
        probability = logits.softmax(1).gather(1, best)
        columns = (batch["label"].tolist(), best.tolist(), probability.tolist())
        return [self._prediction(*row) for row in zip(*columns, strict=True)]

    def _prediction(self, index: int, classes: list[int], values: list[float]) -> Prediction:
        names = [self.names[place] for place in classes]
        found = list(zip(classes, names, values, strict=True))
        line = ", ".join(f"{name} {100 * value:.1f} %" for _, name, value in found)
        return Prediction(index, line, [(rank, *row) for rank, row in enumerate(found, 1)])

    def draw(self, prediction: Prediction) -> Image.Image:
        image, _ = self.images[prediction.index]
        return captioned(image, prediction.line)


class Boxes:
    """A detector's boxes, the best first, in pixels of the image."""

    columns = ("image", "class", "name", "score", "x0", "y0", "x1", "y1")

    def __init__(self, model: Trained, images: Files, top: int):
        self.names = class_names(model)
        self.top = top
        self.photos = Photos(images)
        self.evaluator = Detection(self.photos, self.names, Evaluate(), 0)
        self.source = self.evaluator.source

    def predict(self, net: nn.Module, batch: Batch) -> list[Prediction]:
        return [self._prediction(row) for row in self.evaluator.measure(net, batch)["records"]]

    def _prediction(self, record: tuple) -> Prediction:
        index, boxes, labels, scores = record
        columns = (map(int, labels), scores.tolist(), boxes.tolist())
        found = sorted(zip(*columns, strict=True), key=lambda row: -row[1])
        rows = [(label, self.names[label - 1], score, *box) for label, score, box in found]
        shown = [f"{name} {score:.2f}" for _, name, score, *_ in rows if score >= DRAWN]
        return Prediction(index, ", ".join(shown[: self.top]) or "nothing", rows, record)

    def draw(self, prediction: Prediction) -> Image.Image:
        photo, _ = self.photos[prediction.index]
        return to_pil_image(drawn(photo, prediction.record, self.names))


class Photos(Dataset):
    """Images as photos without annotated objects."""

    def __init__(self, images: Files):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Photo, None]:
        return Photo(self.images[index][0], no_objects(), index), None


# ---- pictures ------------------------------------------------------------------------------------


def _pictures(folder: Path, images: Files, predictor: Classes | Boxes):
    """Make the folder; returns what writes a prediction's picture, at its image's place below."""
    paths = [os.path.dirname(os.path.abspath(images.name(index))) for index in range(len(images))]
    above = os.path.commonpath(paths)
    with disk_errors(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return partial(_write_picture, folder, above, images, predictor)


def _write_picture(
    folder: Path, above: str, images: Files, predictor: Classes | Boxes, prediction: Prediction
) -> None:
    path = os.path.abspath(images.name(prediction.index))
    place = folder / os.path.relpath(path, above)
    if place.suffix.lower() not in (".jpg", ".jpeg"):
        place = place.with_name(f"{place.name}.jpg")
    if place.exists() and place.samefile(path):
        raise UserError(place, "is one of the images", "choose another folder")
    with disk_errors(place, "choose another folder"):
        place.parent.mkdir(parents=True, exist_ok=True)
        predictor.draw(prediction).convert("RGB").save(place, quality=90)


def captioned(image: Image.Image, text: str) -> Image.Image:
    """Return an image, enlarged if it is tiny, above a line of text."""
    factor = -(-SMALLEST // image.width)
    image = image.convert("RGB").resize(
        (factor * image.width, factor * image.height), Image.NEAREST
    )
    picture = Image.new("RGB", (image.width, image.height + 16), "white")
    picture.paste(image, (0, 0))
    ImageDraw.Draw(picture).text((3, image.height + 2), text, "black")
    return picture
