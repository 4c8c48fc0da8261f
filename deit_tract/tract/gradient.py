"""Autograd functions that make TrAct's weight gradient, and the work begun in the forward pass."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gram import (
    Factor,
    gram_factor,
    gram_matrix,
    outer_factor,
    precisely,
    raw_gradient,
    right_solve,
    solve,
    widest_dtype,
    without_autocast,
)
from .patches import Rule, output_rows, patch_rows


class WeightSide(torch.autograd.Function):
    """Pass the weight on and multiply its gradient from the right. For b >= n."""

    @staticmethod
    def forward(weight, x, rule, ahead):
        if ahead is not None:
            ahead.begin(gram_factor, x, rule)
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, x, ctx.rule, ctx.ahead = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with without_autocast(x.device):
            factor = ctx.ahead.factor() if ctx.ahead else gram_factor(x, ctx.rule)
            return right_solve(grad, factor), None, None, None


class OutputSide(torch.autograd.Function):
    """Pass the output on; the detached weight gets g^T (A A^T / b + lam I)^-1 A. For b < n.

    Multiplying g^T A from the right instead would enlarge the rounding errors outside the row space
    of A by 1 / lam.
    """

    @staticmethod
    def forward(z, weight, x, rule, ahead):
        if ahead is not None:
            ahead.begin(outer_factor, x, rule)
        return z.clone()  # not a view, which an in-place activation could not write to

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight, x, ctx.rule, ctx.ahead = inputs
        ctx.save_for_backward(x)
        ctx.weight_shape = weight.shape
        ctx.weight_dtype = weight.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rule = ctx.rule
        (x,) = ctx.saved_tensors
        with without_autocast(x.device):
            factor = ctx.ahead.factor() if ctx.ahead else outer_factor(x, rule)
            solved = solve(factor, output_rows(grad, rule))
            update = solved.mT @ patch_rows(x, rule, solved.dtype)
            return grad, update.reshape(ctx.weight_shape).to(ctx.weight_dtype), None, None, None


class RawSide(torch.autograd.Function):
    """Pass the output on; the detached weight gets its plain gradient in float32. For autocast.

    Autocast would round that gradient to 16 bits, and the inverse then enlarges the rounding
    in directions where A is small: by a factor of ten and more in relation to the update. A plain
    layer's gradient hardly suffers from it.
    """

    @staticmethod
    def forward(z, weight, x, rule):
        return z.clone()  # as above

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight, x, ctx.rule = inputs
        ctx.save_for_backward(x)
        ctx.weight_shape = weight.shape

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with without_autocast(x.device):
            return grad, raw_gradient(grad, x, ctx.rule, ctx.weight_shape), None, None


class SumSide(torch.autograd.Function):
    """Pass the weight on with its raw gradient; A^T A and b become gradients of hidden leaves.

    So autograd sums them over backward passes as it sums the weight's gradient: once each under
    activation checkpointing, not at all for a forward without a backward, and in compiled graphs.
    """

    @staticmethod
    def forward(weight, gram_sum, row_sum, x, rule):
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, x, ctx.rule = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rule = ctx.rule
        (x,) = ctx.saved_tensors
        with without_autocast(x.device):
            gram = precisely(lambda dtype: gram_matrix(x, rule, dtype), x, rule)
            gram = gram.to(widest_dtype(x.device))
            rows = torch.full((), rule.rows, dtype=gram.dtype, device=x.device)
            return grad, gram, rows, None, None


# ---- ahead of the backward pass ------------------------------------------------------------------


def can_run_ahead(x: Tensor) -> bool:
    """Whether work on x may go to a stream of its own: on a CUDA GPU, outside compiled graphs."""
    if not x.is_cuda or type(x) is not Tensor:  # a tensor without memory may name a missing device
        return False
    if torch.compiler.is_compiling():
        return False
    # A captured graph of only the forward pass could not wait for it.
    return not torch.cuda.is_current_stream_capturing()


@functools.cache
def _side_stream(device: torch.device):
    return torch.get_device_module(device).Stream(device)


class Ahead:
    """A factor begun in the forward pass, beside the layers that follow; it needs only the input.

    Nothing in the forward pass waits for it; the backward pass does, and finds it done unless the
    device was full.
    """

    def begin(self, make: Callable[[Tensor, Rule], Factor], x: Tensor, rule: Rule) -> None:
        side = _side_stream(x.device)
        self._streams = torch.get_device_module(x.device)
        side.wait_stream(self._streams.current_stream(x.device))  # which may still be writing x
        with self._streams.stream(side), without_autocast(x.device):
            self._factor = make(x, rule)
        # The memory of x, once freed, must not be reused before the side stream has read it.
        x.record_stream(side)
        self._done = side.record_event()

    def factor(self) -> Factor:
        """Wait on the current stream for the factor, and return it."""
        stream = self._streams.current_stream(self._factor.lower.device)
        stream.wait_event(self._done)
        # The factor's memory belongs to the side stream, which must not reuse it meanwhile.
        for tensor in self._factor:
            tensor.record_stream(stream)
        return self._factor
