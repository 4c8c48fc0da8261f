"""A layer's inputs as rows: the patches of any convolution, copied in pieces of limited size.

A [b, n] has one row per sample or patch. b and n are known from shapes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Window(NamedTuple):
    """How a convolution cuts a batched input into patches."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]  # in the order of F.pad: last axis first
    mode: str
    positions: tuple[int, ...]  # output size

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding, self.mode) if any(self.padding) else x

    def view(self, x: Tensor, first_axis: int = 0) -> Tensor:
        """View a padded input as [B, C, *positions, *kernel]; axes before `first_axis` stay."""
        for axis in range(first_axis, len(self.kernel)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            x = x.unfold(axis + 2, reach, self.stride[axis])[..., :: self.dilation[axis]]
        return x

    def overlaps(self) -> bool:
        axes = zip(self.kernel, self.stride, self.dilation, strict=True)
        return any(k > s or d > 1 for k, s, d in axes)


class Rule(NamedTuple):
    """How a weight gradient is computed; known in the forward pass, from shapes only."""

    window: Window | None  # None: a linear layer
    groups: int
    rows: int  # b
    columns: int  # n
    lam: float
    gram_dtype: torch.dtype | None
    max_bytes: int


def _copy_patches(view: Tensor, groups: int, as_rows: bool) -> Tensor:
    """Copy a view [B, C, *positions, *kernel] to [groups, b, n] or, transposed, [groups, n, b]."""
    axes = (view.dim() - 2) // 2
    view = view.unflatten(1, (groups, -1))
    row = (0, *range(3, 3 + axes))  # the image and the position in it
    column = (2, *range(3 + axes, 3 + 2 * axes))  # the channel and the position in the kernel
    order = (*row, *column) if as_rows else (*column, *row)
    return view.permute(1, *order).flatten(1, 1 + axes).flatten(2)


def patch_rows(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Return all of A: [groups, b, n]."""
    if rule.window is None:
        return x.to(dtype).reshape(1, rule.rows, rule.columns)
    return _copy_patches(rule.window.view(rule.window.pad(x.to(dtype))), rule.groups, as_rows=True)


def column_chunks(x: Tensor, rule: Rule, dtype: torch.dtype):
    """Yield A^T in pieces [groups, n, some of b], each of about `max_bytes` at most."""
    window = rule.window
    row_bytes = rule.groups * rule.columns * dtype.itemsize
    if window is None:
        # in its own dtype nothing is copied, and nothing has to be cut
        step = rule.rows if x.dtype == dtype else rule.max_bytes // row_bytes
        for rows in x.reshape(-1, rule.columns).split(max(1, step)):
            yield rows.to(dtype).mT.unsqueeze(0)
        return
    lines = max(1, rule.max_bytes // (row_bytes * math.prod(window.positions[1:])))
    for images in x.split(max(1, lines // window.positions[0])):
        for part in window.view(window.pad(images.to(dtype))).split(lines, dim=2):
            # A copy is fastest along memory: within a patch if patches do not share pixels,
            # else along the image.
            if window.overlaps():
                yield _copy_patches(part, rule.groups, as_rows=False)
            else:
                yield _copy_patches(part, rule.groups, as_rows=True).mT


def output_rows(grad: Tensor, rule: Rule) -> Tensor:
    """Return the gradient of the layer's output as g [groups, b, m]."""
    if rule.window is None:
        return grad.reshape(1, rule.rows, grad.shape[-1])
    if grad.dim() < len(rule.window.kernel) + 2:
        grad = grad.unsqueeze(0)
    grad = grad.unflatten(1, (rule.groups, -1)).movedim(0, 2)  # [groups, m, B, *positions]
    return grad.flatten(2).mT
