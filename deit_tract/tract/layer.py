"""TrAct: train a network's first layer as if its activations were the parameters.

The gradient of the layer's weight is replaced by equation 12 of "TrAct: Making First-layer Pre-Activations Trainable"
(Petersen, Borgelt, Ermon; NeurIPS 2024). With the layer's inputs or patches as rows A [b, n] and g = dL/dz [b, m]:

    dW = g^T A (A^T A / b + lam I_n)^-1  =  g^T (A A^T / b + lam I_b)^-1 A

The left form is used for b >= n, the right one for b < n; a grouped convolution has one such equation a group.
Nothing else changes: output, bias and input gradients, parameters and `state_dict` are the plain layer's.

    model.conv1 = TrAct(model.conv1, lam=0.1)      # or tract.apply_to_first_layer(model, lam=0.1)
"""

import math
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .gradient import Ahead, OutputSide, RawSide, SumSide, WeightSide, can_run_ahead
from .gram import Rule, Window, factorise, right_solve, widest_dtype

CPU_BYTES, DEVICE_BYTES = (
    8 << 20,
    256 << 20,
)  # patches copied at once: what a cache holds, what fills a GPU

# ---- layers ----------------------------------------------------------------------------------------------------------


class _TrActLayer:
    """What the classes below add to torch's: a forward that differs in the weight's gradient alone."""

    lam = 0.1
    gram = "lane"
    lanes = 1
    ahead = (
        True  # with gram="lane", where the device can: A^T A and its factor beside the forward pass
    )
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
        seen, rule = self._rule(x.detach())
        ahead = Ahead() if self.ahead and self.gram == "lane" and can_run_ahead(seen) else None
        if self.gram == "batch":
            self._drop_stale_sums()
            weight = SumSide.apply(self.weight, self.gram_sum, self.row_sum, seen, rule)
        elif rule.rows >= rule.columns:
            weight = WeightSide.apply(self.weight, seen, rule, ahead)
        else:
            return OutputSide.apply(
                self._plain(x, self.weight.detach()), self.weight, seen, rule, ahead
            )
        if (
            self.weight.dtype == torch.float32
            and x.device.type != "meta"
            and torch.is_autocast_enabled(x.device.type)
        ):
            return RawSide.apply(self._plain(x, weight.detach()), weight, seen, rule)
        return self._plain(x, weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, lam={self.lam:g}" + (
            ", gram=batch" if self.gram == "batch" else ""
        )

    def _settings(self, x: Tensor) -> tuple:
        chunk = CPU_BYTES if x.device.type == "cpu" else DEVICE_BYTES
        return self.lam, self.gram_dtype, self.max_bytes or chunk

    def _apply(self, *args, **kwargs):
        super()._apply(
            *args, **kwargs
        )  # .to(), .cuda(), .half(), to_empty(): the hidden leaves follow the weight
        if self.gram == "batch":
            self._new_sums()
        return self

    def _new_sums(self) -> None:
        """Leaves of gram="batch". One element stands for all: only their gradients hold numbers."""
        n = self.weight[0].numel()
        one = torch.zeros((), dtype=widest_dtype(self.weight.device), device=self.weight.device)
        self.gram_sum = one.expand(getattr(self, "groups", 1), n, n).requires_grad_()
        self.row_sum = one.clone().requires_grad_()

    def _drop_stale_sums(self) -> None:
        """A step given up before finish_step left sums behind: where no raw gradient is, none can belong to it.

        A sharded layer (FSDP2 renames its class) keeps its gradient elsewhere; a compiled one cannot look.
        """
        if not torch.compiler.is_compiling() and type(self) in _PLAIN and self.weight.grad is None:
            self._take_sums()

    def _take_sums(self) -> tuple[Tensor | None, Tensor | None]:
        sums = self.gram_sum.grad, self.row_sum.grad
        self.gram_sum.grad = self.row_sum.grad = None
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
        x = x if x.dim() == len(self.kernel_size) + 2 else x.unsqueeze(0)
        padding, mode = tuple(self._reversed_padding_repeated_twice), self.padding_mode
        if mode == "zeros":
            mode = "constant"
            if not isinstance(
                self.padding, str
            ):  # torch reads the attribute, which may have been set since
                padding = tuple(p for p in reversed(self.padding) for _ in range(2))
        sides = [padding[i] + padding[i + 1] for i in range(0, len(padding), 2)][::-1]
        axes = zip(x.shape[2:], sides, self.kernel_size, self.stride, self.dilation, strict=True)
        positions = tuple((size + p - d * (k - 1) - 1) // s + 1 for size, p, k, s, d in axes)
        window = Window(self.kernel_size, self.stride, self.dilation, padding, mode, positions)
        columns = self.in_channels // self.groups * math.prod(self.kernel_size)
        return x, Rule(
            window, self.groups, len(x) * math.prod(positions), columns, *self._settings(x)
        )


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


# ---- public functions ------------------------------------------------------------------------------------------------


def TrAct(
    module: nn.Module,
    lam: float | None = None,
    *,
    l: float | None = None,  # noqa: E741 (the paper's name)
    gram: str | None = None,
    gram_dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
) -> nn.Module:
    """Gives a first layer TrAct's weight gradient (equation 12), in place, and returns the same object.

    Call it before the layer is wrapped (DDP, FSDP, DeepSpeed, torch.compile). On a layer that has TrAct already it
    changes only what is given.

    module: an nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, exactly.
    lam: the paper's lambda, 0.1 if not given; also as `l=`. An attribute afterwards, free to be set; not in state_dict.
    gram: "lane" (default): every forward has its own Gram matrix, the paper's rule; after `layer.lanes = n`, each of n
        equal parts of its samples. "batch": that of all forwards and processes of an optimizer step together; the
        trainer then calls `finish_step`.
    gram_dtype: of the products A^T A. Default: float64, except on a CPU where float32 is as good.
    max_bytes: of patches copied at once. Default: 8 MiB on a CPU, 256 MiB elsewhere.
    Raises TypeError for any other class (subclasses have forwards of their own), lazy and parametrized layers,
    ValueError for settings out of range. Warns on a frozen weight, on which TrAct has no effect.
    """
    if lam is not None and l is not None:
        raise TypeError("TrAct: lam and l are two names of one argument; give one of them")
    given = {
        "lam": l if lam is None else lam,
        "gram": gram,
        "gram_dtype": gram_dtype,
        "max_bytes": max_bytes,
    }
    given = {name: value for name, value in given.items() if value is not None}
    _check(module, given)
    module.__class__ = _SWAPPED.get(type(module), type(module))
    for name, value in given.items():
        setattr(module, name, value)
    if "gram" in given:
        vars(module).pop("gram_sum", None), vars(module).pop("row_sum", None)
        if gram == "batch":
            module._new_sums()
    if not module.weight.requires_grad:
        warnings.warn(
            "TrAct: the layer's weight is frozen (requires_grad is False): TrAct has no effect",
            stacklevel=2,
        )
    return module


def _check(module: nn.Module, given: dict) -> None:
    kind = type(module)
    if kind not in _SWAPPED and kind not in _PLAIN:
        names = ", ".join(f"nn.{plain.__name__}" for plain in _SWAPPED)
        raise TypeError(
            f"TrAct takes exactly {names}, not {kind.__module__}.{kind.__qualname__}, which may do otherwise"
        )
    if module._parameters.get("weight") is None or "forward" in vars(module):
        raise TypeError(
            f"TrAct: this {kind.__name__}'s weight or forward is replaced (weight_norm, pruning, offloading)"
        )
    lam = given.get("lam", 0.1)
    if not (isinstance(lam, int | float) and math.isfinite(lam) and lam > 0):
        raise ValueError(f"TrAct: lam must be a finite number above 0, not {lam!r}")
    if given.get("gram", "lane") not in ("lane", "batch"):
        raise ValueError(f"TrAct: gram must be 'lane' or 'batch', not {given['gram']!r}")
    if given.get("gram_dtype", torch.float32) not in (torch.float32, torch.float64):
        raise ValueError(
            f"TrAct: gram_dtype must be torch.float32 or torch.float64, not {given['gram_dtype']!r}"
        )
    if given.get("max_bytes", 1) <= 0:
        raise ValueError(f"TrAct: max_bytes must be above 0, not {given['max_bytes']!r}")


def remove(module: nn.Module) -> nn.Module:
    """Makes a TrAct layer, or every one in a model, a plain torch layer again; returns the same object."""
    for _, layer in find(module):
        layer.__class__ = _PLAIN[type(layer)]
        for name in (
            "lam",
            "gram",
            "lanes",
            "ahead",
            "gram_dtype",
            "max_bytes",
            "gram_sum",
            "row_sum",
        ):
            vars(layer).pop(name, None)
    return module


def find(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The TrAct layers of a model, with their names."""
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, _TrActLayer)
    ]


@torch.no_grad()
def finish_step(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Turns the summed raw gradients of layers with gram="batch" into the update of the whole batch.

    Call it once an optimizer step, on every process: after the last backward and the gradients' reduction and
    unscaling, before clipping. weight.grad must be the mean over the whole batch (any factor is kept). Processes may
    have had unequal shares: A^T A and b are summed over them. Layers with gram="lane" are left alone.
    Raises RuntimeError where the whole gradient is not in weight.grad.
    """
    for name, layer in find(model):
        if layer.gram != "batch":
            continue
        grad, (gram, rows) = layer.weight.grad, layer._take_sums()
        if grad is None and gram is None:
            continue
        if grad is None:
            raise RuntimeError(
                f"finish_step: {name}.weight has no gradient: the engine keeps it elsewhere or cleared it"
            )
        if gram is None:  # this process had no share of the batch
            gram, rows = (
                torch.zeros_like(layer.gram_sum).contiguous(),
                torch.zeros_like(layer.row_sum),
            )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(gram, group=group)
            dist.all_reduce(rows, group=group)
        if hasattr(
            grad, "to_local"
        ):  # FSDP2: whole rows of the weight, each of which has its own solution
            if len(gram) > 1:
                raise RuntimeError(
                    f"finish_step: {name} is a sharded grouped convolution; use gram='lane'"
                )
            grad = grad.to_local()
        grad.copy_(right_solve(grad, factorise(gram, rows.clamp(min=1), layer.lam)))


def reset(model: nn.Module) -> None:
    """Forgets what layers with gram="batch" have summed: for a step that is given up before `finish_step`.

    Not needed after zero_grad() that sets gradients to None: the next forward notices (unless compiled or sharded).
    """
    for _, layer in find(model):
        if layer.gram == "batch":
            layer._take_sums()


def check_engine(model: nn.Module, zero_stage: int) -> None:
    """Raises ValueError where gram="batch" cannot be right: an engine that never has the whole gradient at one time.

    zero_stage: DeepSpeed's; 0 without DeepSpeed. Stage 1 too takes gradients out of `weight.grad` as they are reduced.
    """
    names = [name for name, layer in find(model) if layer.gram == "batch"]
    if names and zero_stage >= 1:
        raise ValueError(
            f"TrAct with gram='batch' ({', '.join(names)}) needs the whole first-layer gradient before the step, which "
            f"DeepSpeed ZeRO stage {zero_stage} cuts up; use gram='lane' or stage 0"
        )
