"""TrAct: train a network's first layer as if its activations were the parameters.

The gradient of the layer's weight is replaced by equation 12 of "TrAct: Making First-layer
Pre-Activations Trainable" (Petersen, Borgelt, Ermon; NeurIPS 2024). With the layer's inputs or
patches as rows A [b, n] and g = dL/dz [b, m]:

    dW = g^T A (A^T A / b + lam I_n)^-1  =  g^T (A A^T / b + lam I_b)^-1 A

The left form is used for b >= n, the right one for b < n; a grouped convolution has one such
equation per group. Nothing else changes: output, bias and input gradients, parameters and
`state_dict` are the plain layer's.

    model.conv1 = TrAct(model.conv1, lam=0.1)      # or tract.apply_to_first_layer(model, lam=0.1)
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gradient import Ahead, OutputSide, RawSide, SumSide, WeightSide, can_run_ahead
from .gram import widest_dtype
from .patches import Rule, Window

# patches copied at once: what a CPU's cache holds, and what fills a GPU
CPU_BYTES = 8 << 20
DEVICE_BYTES = 256 << 20

# ---- layers --------------------------------------------------------------------------------------


class _TrActLayer:
    """Adds to torch's layers a forward pass that differs only in the weight's gradient."""

    lam = 0.1
    gram = "lane"
    lanes = 1
    ahead = True  # with gram="lane", on a GPU: A^T A and its factor beside the forward pass
    gram_dtype: torch.dtype | None = None
    max_bytes: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        if self.lanes > 1 and self.gram == "lane":
            if len(x) % self.lanes:
                raise ValueError(f"TrAct: {len(x)} samples do not divide into {self.lanes} lanes")
            return torch.cat([self._lane(part) for part in x.chunk(self.lanes)])
        return self._lane(x)

    def _lane(self, x: Tensor) -> Tensor:
        weight = self.weight
        seen, rule = self._rule(x.detach())
        ahead = Ahead() if self.ahead and self.gram == "lane" and can_run_ahead(seen) else None
        if self.gram == "batch":
            self._drop_stale_sums()
            weight = SumSide.apply(weight, self.gram_sum, self.row_sum, seen, rule)
        elif rule.rows >= rule.columns:
            weight = WeightSide.apply(weight, seen, rule, ahead)
        else:
            z = self._plain(x, weight.detach())
            return OutputSide.apply(z, weight, seen, rule, ahead)
        if self._has_autocast(x.device):
            return RawSide.apply(self._plain(x, weight.detach()), weight, seen, rule)
        return self._plain(x, weight)

    def _has_autocast(self, device: torch.device) -> bool:
        if self.weight.dtype != torch.float32 or device.type == "meta":
            return False
        return torch.is_autocast_enabled(device.type)

    def extra_repr(self) -> str:
        gram = ", gram=batch" if self.gram == "batch" else ""
        return f"{super().extra_repr()}, lam={self.lam:g}{gram}"

    def _settings(self, x: Tensor) -> tuple[float, torch.dtype | None, int]:
        most = CPU_BYTES if x.device.type == "cpu" else DEVICE_BYTES
        return self.lam, self.gram_dtype, self.max_bytes or most

    def _apply(self, *args, **kwargs):
        # .to(), .cuda(), .half(), to_empty(): the hidden leaves follow the weight
        super()._apply(*args, **kwargs)
        if self.gram == "batch":
            self._new_sums()
        return self

    def _new_sums(self) -> None:
        """Make the hidden leaves of gram="batch"; one element each, since only gradients count."""
        n = self.weight[0].numel()
        one = torch.zeros((), dtype=widest_dtype(self.weight.device), device=self.weight.device)
        self.gram_sum = one.expand(getattr(self, "groups", 1), n, n).requires_grad_()
        self.row_sum = one.clone().requires_grad_()

    def _drop_stale_sums(self) -> None:
        """Drop the sums of a step that never reached finish_step: it left no raw gradient.

        A sharded layer (FSDP2 renames its class) keeps its gradient elsewhere; a compiled one
        cannot look.
        """
        if not torch.compiler.is_compiling() and type(self) in _PLAIN and self.weight.grad is None:
            self.take_sums()

    def take_sums(self) -> tuple[Tensor | None, Tensor | None]:
        """Return and forget A^T A and b as summed by the backward passes of gram="batch"."""
        sums = self.gram_sum.grad, self.row_sum.grad
        self.gram_sum.grad = None
        self.row_sum.grad = None
        return sums


class TrActLinear(_TrActLayer, nn.Linear):
    def _plain(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def _rule(self, x: Tensor) -> tuple[Tensor, Rule]:
        return x, Rule(None, 1, math.prod(x.shape[:-1]), self.in_features, *self._settings(x))


class _TrActConv(_TrActLayer):
    def _plain(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)

    def _rule(self, x: Tensor) -> tuple[Tensor, Rule]:
        if x.dim() < len(self.kernel_size) + 2:
            x = x.unsqueeze(0)
        window = self._window(x.shape[2:])
        rows = len(x) * math.prod(window.positions)
        columns = self.in_channels // self.groups * math.prod(self.kernel_size)
        return x, Rule(window, self.groups, rows, columns, *self._settings(x))

    def _window(self, sizes: torch.Size) -> Window:
        padding = tuple(self._reversed_padding_repeated_twice)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        # With zeros torch reads the attribute `padding`, which may have been set after __init__.
        if mode == "constant" and not isinstance(self.padding, str):
            padding = tuple(p for p in reversed(self.padding) for _ in range(2))
        sides = [padding[i] + padding[i + 1] for i in range(0, len(padding), 2)][::-1]
        axes = zip(sizes, sides, self.kernel_size, self.stride, self.dilation, strict=True)
        positions = tuple((size + p - d * (k - 1) - 1) // s + 1 for size, p, k, s, d in axes)
        return Window(self.kernel_size, self.stride, self.dilation, padding, mode, positions)


class TrActConv1d(_TrActConv, nn.Conv1d): ...


class TrActConv2d(_TrActConv, nn.Conv2d): ...


class TrActConv3d(_TrActConv, nn.Conv3d): ...


_SWAPPED = {
    nn.Linear: TrActLinear,
    nn.Conv1d: TrActConv1d,
    nn.Conv2d: TrActConv2d,
    nn.Conv3d: TrActConv3d,
}
_PLAIN = {swapped: plain for plain, swapped in _SWAPPED.items()}
_SUMS = ("gram_sum", "row_sum")
_ATTRIBUTES = ("lam", "gram", "lanes", "ahead", "gram_dtype", "max_bytes", *_SUMS)


# ---- public functions ----------------------------------------------------------------------------


def TrAct(
    module: nn.Module,
    lam: float | None = None,
    *,
    l: float | None = None,  # noqa: E741 (the paper's name)
    gram: str | None = None,
    gram_dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
) -> nn.Module:
    """Give a first layer TrAct's weight gradient (equation 12), in place, and return the layer.

    Call it before the layer is wrapped (DDP, FSDP, DeepSpeed, torch.compile). On a layer that
    already has TrAct it changes only the arguments given.

    module: exactly an nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d.
    lam: the paper's lambda, 0.1 by default; also as `l=`. Afterwards an attribute, which may be
        set at any time; not in state_dict.
    gram: "lane" (default): every forward pass has its own Gram matrix, the paper's rule; after
        `layer.lanes = n`, each of n equal parts of its samples has. "batch": all forward passes and
        processes of an optimizer step share one; the trainer then calls `finish_step`.
    gram_dtype: of the products A^T A. Default: float64, except on a CPU if float32 is as good.
    max_bytes: of patches copied at once. Default: 8 MiB on a CPU, 256 MiB elsewhere.
    Raises TypeError for any other class (subclasses have forward passes of their own) and for lazy
    and parametrized layers, ValueError for arguments out of range. Warns about a frozen weight, on
    which TrAct has no effect.
    """
    if lam is not None and l is not None:
        raise TypeError("TrAct: lam and l are two names of one argument; give one of them")
    lam = l if lam is None else lam
    given = {"lam": lam, "gram": gram, "gram_dtype": gram_dtype, "max_bytes": max_bytes}
    given = {name: value for name, value in given.items() if value is not None}
    check_layer(module)
    _check_arguments(given)
    module.__class__ = _SWAPPED.get(type(module), type(module))
    for name, value in given.items():
        setattr(module, name, value)
    if "gram" in given:
        _forget(module, _SUMS)
        if gram == "batch":
            module._new_sums()
    if not module.weight.requires_grad:
        what = "the layer's weight is frozen (requires_grad is False): TrAct has no effect"
        warnings.warn(f"TrAct: {what}", stacklevel=2)
    return module


def check_layer(module: nn.Module) -> None:
    """Raise TypeError for a layer that TrAct does not take."""
    kind = type(module)
    if kind not in _SWAPPED and kind not in _PLAIN:
        names = ", ".join(f"nn.{plain.__name__}" for plain in _SWAPPED)
        what = f"not {kind.__module__}.{kind.__qualname__}, which may compute something else"
        raise TypeError(f"TrAct takes exactly {names}, {what}")
    if module._parameters.get("weight") is None or "forward" in vars(module):
        what = "weight or forward is replaced (weight_norm, pruning, offloading)"
        raise TypeError(f"TrAct: this {kind.__name__}'s {what}")


def _check_arguments(given: dict) -> None:
    lam = given.get("lam", 0.1)
    gram = given.get("gram", "lane")
    dtype = given.get("gram_dtype", torch.float32)
    most = given.get("max_bytes", 1)
    if not (isinstance(lam, int | float) and math.isfinite(lam) and lam > 0):
        raise ValueError(f"TrAct: lam must be a finite number above 0, not {lam!r}")
    if gram not in ("lane", "batch"):
        raise ValueError(f"TrAct: gram must be 'lane' or 'batch', not {gram!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"TrAct: gram_dtype must be torch.float32 or torch.float64, not {dtype!r}")
    if most <= 0:
        raise ValueError(f"TrAct: max_bytes must be above 0, not {most!r}")


def _forget(layer: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        vars(layer).pop(name, None)


def remove(module: nn.Module) -> nn.Module:
    """Make a TrAct layer, or every one in a model, a plain torch layer again; return the module."""
    for _, layer in find(module):
        layer.__class__ = _PLAIN[type(layer)]
        _forget(layer, _ATTRIBUTES)
    return module


def find(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the TrAct layers of a model with their names."""
    modules = model.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, _TrActLayer)]
