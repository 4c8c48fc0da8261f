"""A photo with objects to the detector's input."""

import random

import torch
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from deit_tract.data.sets.boxes import Photo


class ToSample:
    """A Photo to (tensor (3, h, w) in [0, 1], target), mirrored with probability `flip`; resized in the detector.

    target: boxes (n, 4), labels (n,), index (). Without `difficult` such objects are left out, as in training.
    """

    def __init__(self, flip: float = 0.0, difficult: bool = True):
        self.flip, self.difficult = flip, difficult

    def __call__(self, photo: Photo) -> tuple[Tensor, dict[str, Tensor]]:
        image, (boxes, labels, difficult) = to_tensor(photo.image), photo.objects
        if not self.difficult:
            boxes, labels = boxes[~difficult], labels[~difficult]
        if random.random() < self.flip:
            image, (x0, y0, x1, y1), width = image.flip(-1), boxes.unbind(1), image.shape[-1]
            boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
        return image, {"boxes": boxes, "labels": labels, "index": torch.tensor(photo.index)}
