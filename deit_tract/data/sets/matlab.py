"""Lists and labels from Matlab files."""

from pathlib import Path
from typing import Any

import numpy as np

from deit_tract.common.errors import UserError


def read_matlab(path: Path, key: str) -> Any:
    """Read an entry of a Matlab file as an array of at least one dimension."""
    from scipy.io import loadmat

    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[key])
    except KeyError:
        raise UserError(path, f"has no entry '{key}'", "fetch it again") from None
    except Exception as error:  # broken bytes make the reader raise anything
        what = f"cannot be read as a Matlab file ({error})"
        raise UserError(path, what, "fetch it again") from None


def labels_from_one(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count a file's labels from 0 instead of 1. Raises UserError if one is out of range."""
    labels = labels.astype(np.int64)
    if len(labels) and not 1 <= labels.min() <= labels.max() <= classes:
        what = f"has labels from {labels.min()} to {labels.max()} for {classes} classes"
        raise UserError(path, what, "fetch it again")
    return labels - 1
