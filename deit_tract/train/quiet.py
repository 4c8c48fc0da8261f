"""Warnings of libraries that would only break the progress bar, each by its text and module."""

import warnings

# beginning of the text, module that is blamed for it
SILENT = [
    # train/banner.py says it when it matters
    ("This DataLoader will create", r"(torch\.utils|deit_tract)\.data\."),
    # the order of a tensor's strides: a copy per step, as with channels-last weights
    ("Grad strides do not match bucket view strides", r"torch\.autograd\."),
    # each process has chosen its device
    (r"barrier\(\): using the device under current context", r"torch\.distributed\."),
    # only pixels are read
    ("Corrupt EXIF data", r"PIL\."),
    ("Palette images with Transparency", r"PIL\."),
]


def silence() -> None:
    """Leave these warnings out, in this process and in loaders that it forks."""
    for message, module in SILENT:
        warnings.filterwarnings("ignore", message=message, module=module)
