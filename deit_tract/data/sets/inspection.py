"""What is worth knowing of one's own images before training: sizes, colours, copies, counts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deit_tract.common.errors import UserError
from deit_tract.common.text import align, listed, plural
from deit_tract.data.sets.images import Images, Splits, empty_classes

GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B")  # PIL's modes without colour
SMALL = 64  # px, of the shorter side
LONG = 4  # times as long as wide
MOST_CLASSES = 40  # shown one by one


class Look(NamedTuple):
    """An image as its file has it."""

    width: int
    height: int
    grey: bool
    digest: bytes  # of the file's content


def look_at(images: Images, index: int) -> Look | UserError:
    """Decode an image; its UserError if it cannot be."""
    try:
        images[index]
    except UserError as error:
        return error
    source = images.open(index)
    content = source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes()
    with Image.open(BytesIO(content)) as image:
        digest = blake2b(content, digest_size=16).digest()
        return Look(image.width, image.height, image.mode in GREY, digest)


def class_counts(splits: Splits) -> list[str]:
    """Return a table of the classes' images; of many classes only the smallest and largest."""
    names = splits.train.classes
    counts = [np.bincount(images.labels, minlength=len(names)) for images in splits]
    order = np.argsort(counts[0], kind="stable")
    chosen = list(range(len(names)))
    title = "class"
    if len(names) > MOST_CLASSES:
        chosen = [*order[:5].tolist(), *order[-5:].tolist()]
        title = f"5 smallest and 5 largest of {len(names):,} classes"
    rows = [[f"{counts[0][label]:,}", f"{counts[1][label]:,}", names[label]] for label in chosen]
    *numbers, _ = zip(*rows, strict=True)
    aligned = align([["train", "val"], *map(list, zip(*numbers, strict=True))])
    words = [title, *(row[-1] for row in rows)]
    return [f"{line}  {word}" for line, word in zip(aligned, words, strict=True)]


def remarks(splits: Splits, looks: Mapping[str, Sequence[Look | UserError]]) -> Iterator[str]:
    """What is no mistake and may surprise. looks: of each part, empty if nothing was decoded."""
    empty = empty_classes(splits.val)
    if empty:
        yield f"no validation image of {plural(len(empty), 'class', 'classes')}: {listed(empty)}"
    seen = [
        (part, index, look)
        for part, found in looks.items()
        for index, look in enumerate(found)
        if isinstance(look, Look)
    ]
    if not seen:
        return
    parts = splits._asdict()

    def named(chosen: list[tuple]) -> str:
        return listed([parts[part].where(index) for part, index, _ in chosen], 3)

    short = sorted(min(look.width, look.height) for *_, look in seen)
    yield f"shorter sides of {short[0]} to {short[-1]} px, median {short[len(short) // 2]} px"
    kinds = {
        f"below {SMALL} px": lambda look: min(look.width, look.height) < SMALL,
        f"over {LONG} times as long as wide": lambda look: (
            max(look.width, look.height) > LONG * min(look.width, look.height)
        ),
        "greyscale": lambda look: look.grey,
    }
    for kind, belongs in kinds.items():
        chosen = [row for row in seen if belongs(row[2])]
        if chosen:
            yield f"{plural(len(chosen), 'image')} {kind}: {named(chosen)}"
    yield from _copies(seen, parts)


def _copies(seen: list[tuple], parts: Mapping[str, Images]) -> Iterator[str]:
    """Images with the same content, the gravest first; each group is reported once."""
    groups = defaultdict(list)
    for part, index, look in seen:
        groups[look.digest].append((part, int(parts[part].labels[index]), index))
    several = [group for group in groups.values() if len(group) > 1]
    kinds: dict[str, list[list]] = {
        "with different classes": [],
        "in both training and validation": [],
        "in one part": [],
    }
    for group in several:
        if len({label for _, label, _ in group}) > 1:
            kinds["with different classes"].append(group)
        elif len({part for part, *_ in group}) > 1:
            kinds["in both training and validation"].append(group)
        else:
            kinds["in one part"].append(group)
    for kind, found in kinds.items():
        if found:
            pairs = [" = ".join(parts[p].name(i) for p, _, i in group[:2]) for group in found]
            count = plural(len(found), "image")
            yield f"{count} there more than once, byte for byte, {kind}: {listed(pairs, 3)}"
