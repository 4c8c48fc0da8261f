"""JPEGs decoded faster, to the same pixels."""

import io

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from deit_tract.data.sets.images import Images

try:
    import simplejpeg
except ImportError:  # optional: PIL decodes
    simplejpeg = None


class Decoded(Dataset):
    """A data set's images as uint8 arrays (height, width[, 3]) with the values of the PIL images.

    simplejpeg decodes what it decodes as PIL does; the rest goes to PIL: other formats, greyscale,
    CMYK, and whatever is broken, so that what is accepted does not depend on the decoder.
    """

    def __init__(self, images: Dataset):
        self.images = images
        # images in memory have a __getitem__ of their own
        files = isinstance(images, Images) and type(images).__getitem__ is Images.__getitem__
        self.direct = simplejpeg is not None and files and images.mode == "RGB"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if self.direct:
            array = decode_jpeg(self.images.open(index))
            if array is not None:
                return array, int(self.images.labels[index])
        image, label = self.images[index]
        return np.array(image), label


def decode_jpeg(source: str | io.BytesIO) -> np.ndarray | None:
    """Return a file's or buffer's pixels (height, width, 3), or None if it is left to PIL."""
    try:
        data = source.getvalue() if isinstance(source, io.BytesIO) else _read(source)
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        return simplejpeg.decode_jpeg(data, strict=True)  # a warning of the decoder is an error
    # KeyError: a subsampling that simplejpeg has no name for, such as 4:4:1
    except (OSError, ValueError, KeyError):
        return None


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
