"""scikit-learn's 1,797 scans of handwritten digits, 8 x 8 px with 17 grey levels."""

from collections.abc import Sequence

import numpy as np

from deit_tract.data.sets.images import InMemory, mode_of
from deit_tract.recipe.settings.recipe import Data


def read_digits(data: Data, parts: Sequence[str]) -> list[InMemory]:
    """Read parts of the set: every fifth image is held out, 1,437 to train on, 360 to validate."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(pixels)) % 5 == 0
    rows = {"train": ~held_out, "val": held_out}
    classes = [str(name) for name in digits.target_names]
    splits = [(pixels[rows[part]], digits.target[rows[part]]) for part in parts]
    return [InMemory(*split, classes, "digits", mode_of(data)) for split in splits]
