"""Downloads of official data sets, and their MD5."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets import Flowers102

from deit_tract.common.errors import UserError
from deit_tract.data.sets import cifar, official

DOWNLOADS = {**cifar.TORCHVISION, "flowers102": Flowers102}
MD5 = {  # of a set's files; Flowers-102's two are as in torchvision's flowers102.py
    **{name: cifar.md5(name) for name in cifar.TORCHVISION},
    "flowers102": {
        "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
        "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
    },
    "cars": {},
}


def download(name: str, directory: str) -> None:
    """Fetch a set from its authors through torchvision, into DIR/FOLDER; what is there and whole is not fetched again.

    Raises UserError where the source fails or, as for Stanford Cars, is gone.
    """
    facts = official.FACTS[name]
    if name not in DOWNLOADS:
        raise UserError(
            "--download",
            f"the official source of {facts.title} is gone",
            f"it comes from {facts.source}",
        )
    root = Path(directory)
    try:
        DOWNLOADS[name](root.parent if root.name == facts.folder else root, download=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
    ) as error:  # no connection, wrong MD5, a broken archive
        reason = " ".join(str(error).split())
        raise UserError(
            facts.source, f"{facts.title} cannot be fetched ({reason})", "fetch it by hand"
        ) from None


def changed_files(name: str, directory: str) -> Iterator[UserError]:
    """The files whose MD5 is not the published one; Stanford Cars has none published."""
    folder = official.folder_of(name, directory)
    for file, md5 in MD5[name].items():
        with open(folder / file, "rb") as content:
            found = hashlib.file_digest(content, "md5").hexdigest()
        if found != md5:
            yield UserError(
                folder / file,
                f"differs from the official file (MD5 {found}, not {md5})",
                "get it anew",
            )
