"""How autograd makes TrAct's weight gradient: forms of equation 12, and what a GPU begins in the forward pass."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gram import (
    Factor,
    Rule,
    gram_factor,
    gram_matrix,
    outer_factor,
    output_rows,
    patch_rows,
    precisely,
    raw_gradient,
    right_solve,
    solve,
    widest_dtype,
    without_autocast,
)


class WeightSide(torch.autograd.Function):
    """The weight itself; its gradient is multiplied from the right. For b >= n."""

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
            factor = gram_factor(x, ctx.rule) if ctx.ahead is None else ctx.ahead.factor()
            return right_solve(grad, factor), None, None, None


class OutputSide(torch.autograd.Function):
    """The output itself, made with a detached weight; the weight gets g^T (A A^T / b + lam I)^-1 A. For b < n.

    Multiplying g^T A from the right instead would keep the rounding of A outside its row space, 1 / lam times enlarged.
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
        ctx.weight_shape, ctx.weight_dtype = weight.shape, weight.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,), rule = ctx.saved_tensors, ctx.rule
        with without_autocast(x.device):
            factor = outer_factor(x, rule) if ctx.ahead is None else ctx.ahead.factor()
            solved = solve(factor, output_rows(grad, rule))
            update = solved.mT @ patch_rows(x, rule, solved.dtype)
            return grad, update.reshape(ctx.weight_shape).to(ctx.weight_dtype), None, None, None


class RawSide(torch.autograd.Function):
    """The output itself, made with a detached weight; the weight gets its plain gradient, in float32. For autocast.

    Autocast would round it to 16 bits, and the inverse that follows enlarges the rounding where A has little in it: by
    a factor of ten and more in relation to the update. A plain layer's gradient hardly feels it.
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
    """The weight itself with its raw gradient; A^T A and b go out as the gradients of two hidden leaves.

    So autograd sums them over backward passes as it sums the weight's gradient: once each under activation
    checkpointing, not at all for a forward without a backward, and inside compiled graphs.
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
        (x,), rule = ctx.saved_tensors, ctx.rule
        with without_autocast(x.device):
            gram = precisely(lambda dtype: gram_matrix(x, rule, dtype), x, rule).to(
                widest_dtype(x.device)
            )
            return (
                grad,
                gram,
                torch.full((), rule.rows, dtype=gram.dtype, device=x.device),
                None,
                None,
            )


# ---- ahead of the backward pass --------------------------------------------------------------------------------------


def can_run_ahead(x: Tensor) -> bool:
    """Whether work on x may go to a stream of its own: on a CUDA GPU, not in a graph that is compiled or captured."""
    return (
        x.is_cuda
        and type(x) is Tensor  # not a tensor without memory, whose device may not exist
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()  # a graph of the forward pass alone could not wait for it
    )


@functools.cache
def _side_stream(device: torch.device):
    return torch.get_device_module(device).Stream(device)


class Ahead:
    """A factor, which needs the layer's input alone, begun in the forward pass beside the layers that follow.

    Nothing of the forward pass waits for it; the backward pass does, and finds it done unless the device was full.
    """

    def begin(self, make: Callable[[Tensor, Rule], Factor], x: Tensor, rule: Rule) -> None:
        self._streams, side = torch.get_device_module(x.device), _side_stream(x.device)
        side.wait_stream(self._streams.current_stream(x.device))  # which may still be writing x
        with self._streams.stream(side), without_autocast(x.device):
            self._factor = make(x, rule)
        x.record_stream(
            side
        )  # x's memory, once freed, must not be used anew before the side stream has read it
        self._done = side.record_event()

    def factor(self) -> Factor:
        stream = self._streams.current_stream(self._factor.lower.device)
        stream.wait_event(self._done)
        for tensor in (
            self._factor
        ):  # made with the side stream's memory, which must not be used anew meanwhile
            tensor.record_stream(stream)
        return self._factor
