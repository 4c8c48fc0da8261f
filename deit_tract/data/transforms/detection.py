"""A photo with objects to the detector's input."""

import random

import torch
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from deit_tract.data.sets.boxes import Photo


class ToSample:
    """A Photo to its named tensors, mirrored with probability `flip`; resized in the detector.

    image (3, h, w) in [0, 1], boxes (n, 4), labels (n,), index (). Without `difficult` such objects
    are left out, as in training.
    """

    def __init__(self, flip: float = 0.0, difficult: bool = True):
        self.flip, self.difficult = flip, difficult

    def __call__(self, photo: Photo) -> dict[str, Tensor]:
        image = to_tensor(photo.image)
        boxes, labels, difficult = photo.objects
        if not self.difficult:
            boxes, labels = boxes[~difficult], labels[~difficult]
        if random.random() < self.flip:
            image = image.flip(-1)
            width = image.shape[-1]
            x0, y0, x1, y1 = boxes.unbind(1)
            boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
        index = torch.tensor(photo.index)
        return {"image": image, "boxes": boxes, "labels": labels, "index": index}
