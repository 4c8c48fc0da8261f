"""The numerics of TrAct: patches of any convolution, their Gram matrix, and the regularised solve.

A [b, n] are a layer's inputs or patches as rows. Patches are copied in pieces of limited size, products accumulate in
float32 or float64 whatever the input's dtype, and nothing waits for the device.
"""

import contextlib
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOAT32_LIMIT = (
    5e-3  # eps trace(A^T A / b) / lam, from which on the Gram matrix is made in float64
)


class Window(NamedTuple):
    """What a convolution does to a batched input before its weight. `padding` is as F.pad takes it: last axis first."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    mode: str
    positions: tuple[int, ...]  # output size

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding, self.mode) if any(self.padding) else x

    def view(self, x: Tensor, first_axis: int = 0) -> Tensor:
        """Strided view [B, C, *positions, *kernel] of a padded input; axes before `first_axis` stay as they are."""
        for axis in range(first_axis, len(self.kernel)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            x = x.unfold(axis + 2, reach, self.stride[axis])[..., :: self.dilation[axis]]
        return x

    def overlaps(self) -> bool:
        return any(
            k > s or d > 1 for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)
        )


class Rule(NamedTuple):
    """How a weight gradient is to be made; known in the forward pass, from shapes alone."""

    window: Window | None  # None: a linear layer
    groups: int
    rows: int  # b
    columns: int  # n
    lam: float
    gram_dtype: torch.dtype | None
    max_bytes: int


# ---- patches ---------------------------------------------------------------------------------------------------------


def _copy_patches(view: Tensor, groups: int, as_rows: bool) -> Tensor:
    """A view [B, C, *positions, *kernel] as [groups, b, n] or, transposed, as [groups, n, b]."""
    axes = (view.dim() - 2) // 2
    view = view.unflatten(1, (groups, -1))
    where, what = (0, *range(3, 3 + axes)), (2, *range(3 + axes, 3 + 2 * axes))
    view = view.permute(1, *where, *what) if as_rows else view.permute(1, *what, *where)
    return view.flatten(1, 1 + axes).flatten(2)


def patch_rows(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """A, whole: [groups, b, n]."""
    if rule.window is None:
        return x.to(dtype).reshape(1, rule.rows, rule.columns)
    return _copy_patches(rule.window.view(rule.window.pad(x.to(dtype))), rule.groups, as_rows=True)


def _column_chunks(x: Tensor, rule: Rule, dtype: torch.dtype):
    """A^T as pieces [groups, n, some of b], each of about `max_bytes` at most."""
    window, row_bytes = rule.window, rule.groups * rule.columns * dtype.itemsize
    if window is None:
        step = (
            rule.rows if x.dtype == dtype else rule.max_bytes // row_bytes
        )  # nothing to copy, nothing to cut
        for rows in x.reshape(-1, rule.columns).split(max(1, step)):
            yield rows.to(dtype).mT.unsqueeze(0)
        return
    lines = max(1, rule.max_bytes // (row_bytes * math.prod(window.positions[1:])))
    for images in x.split(max(1, lines // window.positions[0])):
        for part in window.view(window.pad(images.to(dtype))).split(lines, dim=2):
            # Copies run fastest along memory: within a patch if it has its pixels to itself, else along the image.
            if window.overlaps():
                yield _copy_patches(part, rule.groups, as_rows=False)
            else:
                yield _copy_patches(part, rule.groups, as_rows=True).mT


# ---- Gram matrices ---------------------------------------------------------------------------------------------------


def _add_lower(gram: Tensor, columns: Tensor) -> None:
    """gram += columns @ columns^T for [groups, n, L], in block rows up to the diagonal: Cholesky reads no more."""
    n = gram.shape[-1]
    step = max(1, n) if n < 256 else max(96, -(-n // 8))
    for i in range(0, n, step):
        gram[:, i : i + step, : i + step].baddbmm_(
            columns[:, i : i + step], columns[:, : i + step].mT
        )


def gram_matrix(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """A^T A, summed over rows: [groups, n, n], of which only the lower half is sure to be filled."""
    if rule.window is not None and _rows_are_shared(x, rule, dtype):
        return _gram_from_shared_rows(x, rule, dtype)
    gram = torch.zeros(rule.groups, rule.columns, rule.columns, dtype=dtype, device=x.device)
    for columns in _column_chunks(x, rule, dtype):
        _add_lower(gram, columns)
    return gram


def _covered(window: Window) -> int:
    """How many lines along the first axis lie under some patch."""
    return window.stride[0] * (window.positions[0] - 1) + window.kernel[0]


def _rows_are_shared(x: Tensor, rule: Rule, dtype: torch.dtype) -> bool:
    """Whether patches one below the other share image lines, and the products of lines fit in `max_bytes`."""
    window = rule.window
    shared = (
        len(window.kernel) > 1 and window.kernel[0] > window.stride[0] and window.dilation[0] == 1
    )
    size = _covered(window) * rule.columns**2 // window.kernel[0] * dtype.itemsize
    return shared and rule.groups == 1 and len(x) > 0 and size <= rule.max_bytes


def _gram_from_shared_rows(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """A^T A of overlapping patches from the products of image lines, each formed once.

    Unfolded along all axes but the first, line h of the images is R_h [r, L] with n = kernel r. The entry of the Gram
    matrix for kernel lines p and q is the sum of R_h R_(h+q-p)^T over the lines h = p, p + stride, ... that meet p:
    a stride/kernel part of the copies and of the multiplications that patches would take.
    """
    window, kernel, lines = rule.window, rule.window.kernel[0], _covered(rule.window)
    r = rule.columns // kernel
    products = torch.zeros(lines, r, rule.columns, dtype=dtype, device=x.device)
    column_bytes = (lines + kernel) * r * math.prod(window.positions[2:]) * dtype.itemsize
    columns = max(1, rule.max_bytes // column_bytes)
    for images in x.split(max(1, columns // window.positions[1])):
        for part in window.view(window.pad(images.to(dtype))[:, :, :lines], first_axis=1).split(
            columns, dim=3
        ):
            rows = _lines_first(part, kernel - 1)
            below = (
                rows.unfold(0, kernel, 1).permute(0, 3, 1, 2).flatten(1, 2)
            )  # a view: R_h to R_(h+kernel-1)
            products.baddbmm_(rows[:lines], below.mT)
    gram = products.new_empty(kernel, r, kernel, r)
    for p in range(kernel):
        block = products[p : lines - kernel + p + 1 : window.stride[0], :, : (kernel - p) * r].sum(
            0
        )
        block = block.unflatten(1, (kernel - p, r))
        gram[p, :, p:], gram[p:, :, p] = block, block.permute(1, 2, 0)
    gram = gram.view(kernel, x.shape[1], -1, kernel, x.shape[1], r // x.shape[1]).permute(
        1, 0, 2, 4, 3, 5
    )
    return gram.reshape(1, rule.columns, rule.columns)


def _lines_first(view: Tensor, extra: int) -> Tensor:
    """Copies a view [B, C, H, *positions, *kernel] to [H + extra, C kernel, B positions]; extra lines are zero."""
    axes = (view.dim() - 3) // 2
    view = view.permute(2, 1, *range(3 + axes, 3 + 2 * axes), 0, *range(3, 3 + axes))
    rows = view.new_empty(len(view) + extra, *view.shape[1:])
    rows[: len(view)].copy_(view)
    rows[len(view) :].zero_()
    return rows.flatten(1, 1 + axes).flatten(2)


def widest_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def precisely(product, x: Tensor, rule: Rule) -> Tensor:
    """product(dtype), A^T A or A A^T, in a dtype whose rounding is small against lam.

    Rounding moves the eigenvalues by up to eps times the trace. On a CPU that is looked up; elsewhere, and in compiled
    graphs, looking would make the host wait for the device, so the product is made in float64 unless asked otherwise.
    """
    if rule.gram_dtype is not None and x.dtype != torch.float64:
        return product(rule.gram_dtype)
    if x.device.type == "cpu" and x.dtype != torch.float64 and not torch.compiler.is_compiling():
        matrix = product(torch.float32)
        rounding = (
            torch.finfo(torch.float32).eps
            * matrix.diagonal(dim1=-2, dim2=-1).sum(-1).max()
            / max(1, rule.rows)
        )
        if rounding < _FLOAT32_LIMIT * rule.lam:  # not so for NaN
            return matrix
    return product(widest_dtype(x.device))


# ---- solving -------------------------------------------------------------------------------------------------------


class Factor(NamedTuple):
    """The Cholesky factor [groups, n, n] of a regularised matrix; `info` [groups] is 0 where there is one."""

    lower: Tensor
    info: Tensor


def factorise(matrix: Tensor, rows: Tensor | int, lam: float) -> Factor:
    """Of matrix / rows + lam I.

    Factored in float64, solved in the matrix's dtype: where a float32 matrix is good enough, so are such triangular
    solves (the error stays, a third of the time goes), while a float32 factorisation would add to the error.
    """
    wide = matrix.to(widest_dtype(matrix.device)).div_(rows)
    wide.diagonal(dim1=-2, dim2=-1).add_(lam)
    lower, info = torch.linalg.cholesky_ex(
        wide
    )  # unlike torch.linalg.cholesky, does not wait for the device
    return Factor(lower.to(matrix.dtype), info)


def solve(factor: Factor, right: Tensor) -> Tensor:
    """The factored matrix's inverse times `right`; NaN where the matrix was not positive definite or not finite."""
    solved = torch.cholesky_solve(right.to(factor.lower.dtype), factor.lower)
    return solved.masked_fill(factor.info.view(-1, 1, 1) != 0, math.nan)


def right_solve(grad: Tensor, factor: Factor) -> Tensor:
    """A raw weight gradient g^T A times the factored matrix's inverse, group by group."""
    raw = grad.reshape(len(factor.lower), -1, factor.lower.shape[-1])
    return solve(factor, raw.mT).mT.reshape(grad.shape).to(grad.dtype)


def gram_factor(x: Tensor, rule: Rule) -> Factor:
    """Of A^T A / b + lam I."""
    gram = precisely(lambda dtype: gram_matrix(x, rule, dtype), x, rule)
    return factorise(gram, max(1, rule.rows), rule.lam)


def outer_factor(x: Tensor, rule: Rule) -> Factor:
    """Of A A^T / b + lam I."""
    outer = precisely(lambda dtype: outer_matrix(patch_rows(x, rule, dtype)), x, rule)
    return factorise(outer, max(1, rule.rows), rule.lam)


def outer_matrix(rows: Tensor) -> Tensor:
    """A A^T, lower half."""
    outer = rows.new_zeros(*rows.shape[:2], rows.shape[1])
    _add_lower(outer, rows)
    return outer


def output_rows(grad: Tensor, rule: Rule) -> Tensor:
    """The gradient of the layer's output as g [groups, b, m]."""
    if rule.window is None:
        return grad.reshape(1, rule.rows, grad.shape[-1])
    grad = grad if grad.dim() == len(rule.window.kernel) + 2 else grad.unsqueeze(0)
    grad = grad.unflatten(1, (rule.groups, -1)).movedim(0, 2)  # [groups, m, B, *positions]
    return grad.flatten(2).mT


def raw_gradient(grad: Tensor, x: Tensor, rule: Rule, shape: torch.Size) -> Tensor:
    """g^T A, the plain weight gradient, in float32 where the layer itself computes in 16 bits."""
    grad, x = grad.float(), x.float()
    if rule.window is None:
        return grad.reshape(rule.rows, -1).mT @ x.reshape(rule.rows, rule.columns)
    window, zeros = rule.window, [0] * len(rule.window.kernel)
    grad = grad if grad.dim() == x.dim() else grad.unsqueeze(0)
    weight = grad.new_empty(1).expand(shape)  # of which the shape counts alone
    return torch.ops.aten.convolution_backward(
        grad, window.pad(x), weight, None, window.stride, zeros, window.dilation, False, zeros, rule.groups,
        (False, True, False),
    )[1]  # fmt: skip


def without_autocast(device: torch.device):
    """Autocast off for our own arithmetic; the meta device has none."""
    return (
        contextlib.nullcontext()
        if device.type == "meta"
        else torch.autocast(device.type, enabled=False)
    )
