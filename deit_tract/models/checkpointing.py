"""Activation checkpointing: less memory for activations, which are computed twice."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from deit_tract.common.errors import UserError


def set_checkpointing(model: nn.Module) -> None:
    """Let a timm model keep only its blocks' inputs, and compute the rest again in the backward.

    Drop path and dropout repeat their draws: the masks were handed in, and torch sets its
    generators back. Raises UserError if the model cannot.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # timm asserts where a model has no support
        what = f"{type(model).__name__} has no activation checkpointing"
        raise UserError("model.checkpointing", what, "set it to false") from None


def forward_pass(model: nn.Module, checkpointing: bool) -> Callable[[], AbstractContextManager]:
    """Return what to surround a training forward pass with."""
    layers = [layer for layer in model.modules() if isinstance(layer, _NormBase)]
    layers = [layer for layer in layers if layer.track_running_stats]
    return MovingOnce(layers).forward_pass if checkpointing and layers else nullcontext


class MovingOnce:
    """Batch normalisation whose running statistics move in the forward pass only.

    Under checkpointing it sees each batch again in the backward pass.
    """

    def __init__(self, layers: list[nn.Module]):
        self.momenta = {layer: layer.momentum for layer in layers}
        self.inside = False
        for layer in layers:
            layer.register_forward_pre_hook(self._uncounted)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        self.inside = True
        for layer, momentum in self.momenta.items():
            layer.momentum = momentum
        yield
        self.inside = False
        for layer in self.momenta:
            layer.momentum = 0.0  # without statistics other tensors would be saved

    def _uncounted(self, layer: nn.Module, inputs: tuple) -> None:
        """Take back the batch that a layer is about to count again."""
        if layer.training and not self.inside:
            layer.num_batches_tracked.sub_(1)
