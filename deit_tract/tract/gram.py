"""TrAct's numerics: the Gram matrix of inputs or patches A [b, n], and the regularised solve.

Products accumulate in float32 or float64 whatever the input's dtype; nothing waits for the device.
"""

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .patches import Rule, Window, column_chunks, patch_rows

# eps trace(A^T A / b) / lam, from which on the Gram matrix is computed in float64
_FLOAT32_LIMIT = 5e-3


# ---- Gram matrices -------------------------------------------------------------------------------


def _add_lower(gram: Tensor, columns: Tensor) -> None:
    """Add columns @ columns^T, for [groups, n, L], in block rows up to the diagonal.

    The Cholesky factorisation reads no more than the lower half.
    """
    n = gram.shape[-1]
    step = max(1, n) if n < 256 else max(96, -(-n // 8))
    for i in range(0, n, step):
        end = i + step
        gram[:, i:end, :end].baddbmm_(columns[:, i:end], columns[:, :end].mT)


def gram_matrix(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Return A^T A, summed over rows: [groups, n, n]; only its lower half is sure to be filled."""
    if rule.window is not None and _rows_are_shared(x, rule, dtype):
        return _gram_from_shared_rows(x, rule, dtype)
    gram = torch.zeros(rule.groups, rule.columns, rule.columns, dtype=dtype, device=x.device)
    for columns in column_chunks(x, rule, dtype):
        _add_lower(gram, columns)
    return gram


def outer_matrix(rows: Tensor) -> Tensor:
    """Return A A^T, its lower half."""
    outer = rows.new_zeros(*rows.shape[:2], rows.shape[1])
    _add_lower(outer, rows)
    return outer


def _covered(window: Window) -> int:
    """Return how many lines along the first axis lie under at least one patch."""
    return window.stride[0] * (window.positions[0] - 1) + window.kernel[0]


def _rows_are_shared(x: Tensor, rule: Rule, dtype: torch.dtype) -> bool:
    """Whether patches below each other share image lines, whose products fit in `max_bytes`."""
    window = rule.window
    shared = len(window.kernel) > 1 and window.kernel[0] > window.stride[0]
    if not shared or window.dilation[0] > 1 or rule.groups > 1 or len(x) == 0:
        return False
    size = _covered(window) * rule.columns**2 // window.kernel[0] * dtype.itemsize
    return size <= rule.max_bytes


def _gram_from_shared_rows(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Return A^T A of overlapping patches from the products of image lines, each formed once.

    Unfolded along all axes but the first, line h of the images is R_h [r, L] with n = kernel r. The
    entry of the Gram matrix for kernel lines p and q is the sum of R_h R_(h+q-p)^T over the lines
    h = p, p + stride, ... that p covers: stride/kernel of the copies and multiplications that
    patches would take.
    """
    window = rule.window
    kernel = window.kernel[0]
    r = rule.columns // kernel
    products = _line_products(x, rule, dtype)
    gram = products.new_empty(kernel, r, kernel, r)
    for p in range(kernel):
        covered = slice(p, len(products) - kernel + p + 1, window.stride[0])
        block = products[covered, :, : (kernel - p) * r].sum(0).unflatten(1, (kernel - p, r))
        gram[p, :, p:] = block
        gram[p:, :, p] = block.permute(1, 2, 0)
    channels = x.shape[1]
    gram = gram.view(kernel, channels, -1, kernel, channels, r // channels)
    return gram.permute(1, 0, 2, 4, 3, 5).reshape(1, rule.columns, rule.columns)


def _line_products(x: Tensor, rule: Rule, dtype: torch.dtype) -> Tensor:
    """Return R_h [R_h, ..., R_(h+kernel-1)]^T for every covered line h: [lines, r, n]."""
    window = rule.window
    kernel = window.kernel[0]
    lines = _covered(window)
    r = rule.columns // kernel
    products = torch.zeros(lines, r, rule.columns, dtype=dtype, device=x.device)
    column_bytes = (lines + kernel) * r * math.prod(window.positions[2:]) * dtype.itemsize
    columns = max(1, rule.max_bytes // column_bytes)
    for images in x.split(max(1, columns // window.positions[1])):
        padded = window.pad(images.to(dtype))[:, :, :lines]
        for part in window.view(padded, first_axis=1).split(columns, dim=3):
            rows = _lines_first(part, kernel - 1)
            # a view: R_h to R_(h+kernel-1)
            below = rows.unfold(0, kernel, 1).permute(0, 3, 1, 2).flatten(1, 2)
            products.baddbmm_(rows[:lines], below.mT)
    return products


def _lines_first(view: Tensor, extra: int) -> Tensor:
    """Copy [B, C, H, *positions, *kernel] to [H + extra, C kernel, B positions], extra lines 0."""
    axes = (view.dim() - 3) // 2
    view = view.permute(2, 1, *range(3 + axes, 3 + 2 * axes), 0, *range(3, 3 + axes))
    rows = view.new_empty(len(view) + extra, *view.shape[1:])
    rows[: len(view)].copy_(view)
    rows[len(view) :].zero_()
    return rows.flatten(1, 1 + axes).flatten(2)


# ---- precision -----------------------------------------------------------------------------------


def without_autocast(device: torch.device):
    """Turn autocast off for our own arithmetic; the meta device has none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def widest_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def precisely(product, x: Tensor, rule: Rule) -> Tensor:
    """Return product(dtype), A^T A or A A^T, in a dtype whose rounding is small against lam.

    Rounding moves the eigenvalues by up to eps times the trace. A CPU looks at the trace; elsewhere
    and in compiled graphs looking would make the host wait for the device, so the product is in
    float64 unless the rule names a dtype.
    """
    if rule.gram_dtype is not None and x.dtype != torch.float64:
        return product(rule.gram_dtype)
    if x.device.type == "cpu" and x.dtype != torch.float64 and not torch.compiler.is_compiling():
        matrix = product(torch.float32)
        trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1).max()
        rounding = torch.finfo(torch.float32).eps * trace / max(1, rule.rows)
        if rounding < _FLOAT32_LIMIT * rule.lam:  # false for NaN
            return matrix
    return product(widest_dtype(x.device))


# ---- solving -------------------------------------------------------------------------------------


class Factor(NamedTuple):
    """The Cholesky factor [groups, n, n] of a regularised matrix; `info` [groups] is 0 if found."""

    lower: Tensor
    info: Tensor


def factorise(matrix: Tensor, rows: Tensor | int, lam: float) -> Factor:
    """Factorise matrix / rows + lam I.

    In float64, but solved in the matrix's dtype: if a float32 matrix is good enough, so are float32
    triangular solves (the same error in two thirds of the time), unlike a float32 factorisation.
    """
    wide = matrix.to(widest_dtype(matrix.device)).div_(rows)
    wide.diagonal(dim1=-2, dim2=-1).add_(lam)
    # unlike torch.linalg.cholesky, this does not wait for the device
    lower, info = torch.linalg.cholesky_ex(wide)
    return Factor(lower.to(matrix.dtype), info)


def gram_factor(x: Tensor, rule: Rule) -> Factor:
    """Factorise A^T A / b + lam I."""
    gram = precisely(lambda dtype: gram_matrix(x, rule, dtype), x, rule)
    return factorise(gram, max(1, rule.rows), rule.lam)


def outer_factor(x: Tensor, rule: Rule) -> Factor:
    """Factorise A A^T / b + lam I."""
    outer = precisely(lambda dtype: outer_matrix(patch_rows(x, rule, dtype)), x, rule)
    return factorise(outer, max(1, rule.rows), rule.lam)


def solve(factor: Factor, right: Tensor) -> Tensor:
    """Multiply `right` by the factored matrix's inverse; NaN if there is no factor."""
    solved = torch.cholesky_solve(right.to(factor.lower.dtype), factor.lower)
    return solved.masked_fill(factor.info.view(-1, 1, 1) != 0, math.nan)


def right_solve(grad: Tensor, factor: Factor) -> Tensor:
    """Multiply a raw weight gradient g^T A by the factored matrix's inverse, group by group."""
    raw = grad.reshape(len(factor.lower), -1, factor.lower.shape[-1])
    return solve(factor, raw.mT).mT.reshape(grad.shape).to(grad.dtype)


def raw_gradient(grad: Tensor, x: Tensor, rule: Rule, shape: torch.Size) -> Tensor:
    """Return g^T A, the plain weight gradient, in float32 even if the layer computes in 16 bits."""
    grad = grad.float()
    x = x.float()
    if rule.window is None:
        return grad.reshape(rule.rows, -1).mT @ x.reshape(rule.rows, rule.columns)
    if grad.dim() < x.dim():
        grad = grad.unsqueeze(0)
    window = rule.window
    weight = grad.new_empty(1).expand(shape)  # only its shape counts
    zeros = [0] * len(window.kernel)
    how = (window.stride, zeros, window.dilation, False, zeros, rule.groups)
    wanted = (False, True, False)  # of input, weight and bias
    padded = window.pad(x)
    return torch.ops.aten.convolution_backward(grad, padded, weight, None, *how, wanted)[1]
