"""gram="batch": one Gram matrix for all forwards and processes of an optimizer step."""

import torch
import torch.distributed as dist
from torch import nn

from .gram import factorise, right_solve
from .layer import find


@torch.no_grad()
def finish_step(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Turn the summed raw gradients of layers with gram="batch" into the update of the full batch.

    Call it once per optimizer step, on every process: after the last backward pass and after the
    gradients are reduced and unscaled, before clipping. weight.grad must be the mean over the full
    batch (any factor is kept). Processes may have had unequal shares: A^T A and b are summed over
    them. Layers with gram="lane" are not touched.
    Raises RuntimeError if weight.grad does not hold the full gradient.
    """
    for name, layer in find(model):
        if layer.gram != "batch":
            continue
        grad = layer.weight.grad
        gram, rows = layer.take_sums()
        if grad is None and gram is None:
            continue
        if grad is None:
            what = f"{name}.weight has no gradient: the engine keeps it elsewhere or cleared it"
            raise RuntimeError(f"finish_step: {what}")
        if gram is None:  # this process had no share of the batch
            gram = torch.zeros_like(layer.gram_sum).contiguous()
            rows = torch.zeros_like(layer.row_sum)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(gram, group=group)
            dist.all_reduce(rows, group=group)
        if hasattr(grad, "to_local"):  # FSDP2: complete rows of the weight, each solved on its own
            if len(gram) > 1:
                what = f"{name} is a sharded grouped convolution; use gram='lane'"
                raise RuntimeError(f"finish_step: {what}")
            grad = grad.to_local()
        grad.copy_(right_solve(grad, factorise(gram, rows.clamp(min=1), layer.lam)))


def reset(model: nn.Module) -> None:
    """Forget the sums of layers with gram="batch": for a step that never reaches `finish_step`.

    Not needed after a zero_grad() that sets gradients to None: the next forward pass notices
    (unless the layer is compiled or sharded).
    """
    for _, layer in find(model):
        if layer.gram == "batch":
            layer.take_sums()


def check_engine(model: nn.Module, zero_stage: int) -> None:
    """Raise ValueError for gram="batch" under an engine that never has the full gradient at once.

    zero_stage: DeepSpeed's; 0 without DeepSpeed. From stage 1 on, DeepSpeed takes gradients out of
    `weight.grad` as they are reduced.
    """
    names = [name for name, layer in find(model) if layer.gram == "batch"]
    if names and zero_stage >= 1:
        what = f"TrAct with gram='batch' ({', '.join(names)}) needs the full first-layer gradient"
        why = f"DeepSpeed ZeRO stage {zero_stage} partitions it"
        raise ValueError(f"{what} before the step, but {why}; use gram='lane' or stage 0")
