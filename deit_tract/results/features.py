"""Embeddings of images by a trained model: what its classifier sees."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deit_tract.common.errors import UserError
from deit_tract.common.files import disk_errors
from deit_tract.common.text import plural
from deit_tract.data.feed import Source
from deit_tract.data.loader import Batch
from deit_tract.data.sets.images import Images
from deit_tract.data.sets.load import load_part
from deit_tract.results.evaluation import data_of
from deit_tract.results.inference import Computing, Numbered, Skipped, compute, find_images
from deit_tract.results.trained import Trained, load_trained


@dataclass(frozen=True, kw_only=True)
class Request(Computing):
    """The options of tools/features.py: either images, or a part of a data set."""

    out: Path
    images: list[str] = field(default_factory=list)
    data: str | None = None
    data_dir: str | None = None
    no_verify: bool = False
    part: str = "val"


def write_features(request: Request) -> int:
    """Write the embeddings and return how many images could not be read.

    The file has `features` (n, d) float32 and `files` (n,), of a data set also `labels` (n,) and
    `classes`. Images are read batch by batch; the embeddings are held until the end.
    """
    if bool(request.images) == (request.data is not None):
        what = "images and --data say both what to embed" if request.images else "nothing to embed"
        raise UserError("command line", what, "give either images or --data NAME")
    model = load_trained(request.source, request)
    if not hasattr(model.net, "forward_head"):
        what = "has no forward_head of timm's models"
        raise UserError(model.name, what, "choose a classifier of timm's")
    images = _images(request, model)
    source = Source(Numbered(images), model.transform)
    skipped = Skipped()
    batches = list(compute(model, source, request, embed, skipped))
    if not batches:
        raise UserError("command line", "no image can be read")
    features = torch.cat([rows for rows, _ in batches]).numpy()
    places = torch.cat([numbers for _, numbers in batches]).numpy()
    arrays = {"features": features, "files": np.array([images.where(i) for i in places.tolist()])}
    if request.data is not None:
        arrays |= {"labels": images.labels[places], "classes": np.array(images.classes)}
    _write(request.out, arrays)
    size = f"{plural(len(features), 'image')}, {features.shape[1]:,} numbers each"
    left_out = f"; {plural(skipped.count, 'image')} skipped" if skipped.count else ""
    print(f"wrote {request.out}: {size}{left_out}")
    return skipped.count


def embed(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the input of the classifier (b, d) as timm's models give it, and the positions."""
    features = net.forward_head(net.forward_features(batch["image"]), pre_logits=True)
    return features.float().cpu(), batch["label"].cpu()


def _images(request: Request, model: Trained) -> Images:
    if request.images:
        return find_images(request.images, model.view["channels"])
    name, data = data_of(request, model)
    return load_part(data, name, request.part)


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file, which appears once it is complete."""
    part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(file, "name another file"):
            with open(part, "wb") as target:
                np.savez(target, **arrays)
            os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
