"""What a model costs, from shapes: FLOPs and bytes are counted, memory and speed are estimated."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from deit_tract.common.errors import UserError
from deit_tract.common.text import GIB
from deit_tract.models import detector
from deit_tract.models.cifar.blocks import Residual
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.models.precision import autocast
from deit_tract.models.token_drop import TokenDrop, draw_tokens
from deit_tract.plan.gpus import Gpu
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.tract import first_layer_name
from deit_tract.tract.layer import DEVICE_BYTES

# Choice; published ViT training is between 0.06 (waiting for data) and 0.55 (ViT-B, RTX 3090)
MFU = 0.35
# s, an estimate: what a GPU needs at least for a lane, to launch the kernels of a ViT-S
LAUNCHES = 5e-3
# images/s of one Zen 4 core: DeiT's pipeline in PIL, 224 px crops of ImageNet's JPEGs
CORE_RATE = 184
# data.pipeline fast for a GPU, times that (docs/benchmarks.md, made images)
FAST = {"colours": 2.2, "RandAugment": 1.4}

# torch 2.11 does not count it by itself
_FUSED_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Cost(NamedTuple):
    """What a model costs, from shapes."""

    parameters: int
    trainable: int  # of the parameters
    weights: int  # bytes of its state dict
    first_layer: str | None
    forward: int  # FLOPs per image
    training: int  # FLOPs per image: forward and backward, without TrAct
    tract: int  # FLOPs per image of TrAct's Gram matrix, 0 without TrAct
    activations: int  # bytes that autograd saves in a lane's forward pass
    tract_memory: int  # bytes
    gram: int = 0  # bytes of TrAct's Gram matrix in float64, 0 without TrAct


def measure(recipe: Recipe, net: nn.Module) -> Cost:
    """Count one lane's training forward pass on shapes, under the recipe's (resolved) autocast.

    A backward pass is two forward passes, without the gradient that the first layer would send to
    the images. If only the classifier is trained, none is counted; if only attention is trained,
    less is saved than counted here.
    Raises UserError if the model does not take the recipe's images.
    """
    net = detector.TraceableDetector(net) if isinstance(net, detector.Detector) else net
    first = first_layer_name(net)
    flops, activations = _trace(recipe, net)
    lane = recipe.batch.lane_size
    total = flops["Global"]
    at_first = flops.get(f"{type(net).__name__}.{first}", 0)
    gram_flops = gram_memory = gram = 0
    if recipe.model.tract is not None and first is not None:
        layer = net.get_submodule(first)
        rows = at_first // (2 * layer.weight.numel())
        columns = layer.weight[0].numel()
        groups = getattr(layer, "groups", 1)
        gram_flops = 2 * rows * columns**2 * groups
        copied = min(8 * rows * columns * groups, DEVICE_BYTES)
        gram = 8 * columns**2 * groups
        gram_memory = copied + 3 * gram  # the matrix, its factor, a solution
    return Cost(
        parameters=sum(p.numel() for p in net.parameters()),
        trainable=sum(p.numel() for p in net.parameters() if p.requires_grad),
        weights=sum(value.numel() * value.element_size() for value in net.state_dict().values()),
        first_layer=first,
        forward=total // lane,
        training=(total if recipe.model.train == "head" else 3 * total - at_first) // lane,
        tract=gram_flops // lane,
        activations=activations,
        tract_memory=gram_memory,
        gram=gram,
    )


def _trace(recipe: Recipe, net: nn.Module) -> tuple[dict[str, int], int]:
    """A lane's forward pass on tensors without numbers.

    Returns FLOPs by module, and the bytes that wait for the backward pass. The tensors pose as a
    CPU's, where attention is the fused one and autocast is as on a GPU.
    """
    data, lane = recipe.data, recipe.batch.lane_size
    # each storage once; kept, so that no other storage gets its number
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        state = {name: _on_cpu(value) for name, value in state.items()}
        images = torch.empty(lane, data.channels, *image_shape(recipe), device="cpu")
        drop_paths = [module for module in net.modules() if isinstance(module, DropPath)]
        draw_drop_path(drop_paths, lane, 0, images.device)
        token_drops = [module for module in net.modules() if isinstance(module, TokenDrop)]
        draw_tokens(token_drops, lane, 0, images.device)
        attention = {_FUSED_ATTENTION: _attention_flops}
        counter = FlopCounterMode(display=False, custom_mapping=attention)
        saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        net.train()
        for block in net.modules():
            if isinstance(block, Residual):
                block.training = False  # no body is dropped
        try:
            with counter, autocast(recipe, images.device), saving:
                out = torch.func.functional_call(net, state, (images,))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            size = " x ".join(map(str, image_shape(recipe)))
            what = f"{recipe.model.name} does not take {lane} images of {data.channels} x {size} px"
            raise UserError("data.image_size", f"{what} ({str(error).splitlines()[0]})") from None
    if recipe.task == "classify":
        _check_logits(recipe, out)
    own = {value.untyped_storage()._cdata for value in state.values()}
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return flops, sum(storage.nbytes() for key, storage in saved.items() if key not in own)


def _check_logits(recipe: Recipe, out: torch.Tensor | object) -> None:
    """Raise UserError if a model gives anything but one value per image and class."""
    wanted = (recipe.batch.lane_size, recipe.data.classes)
    shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if shape != wanted:
        what = f"{recipe.model.name} gives {shape} instead of {wanted}, images and classes"
        raise UserError("model.args", what, "leave out what changes its output")


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    requires_grad = value.requires_grad
    return torch.empty(value.shape, dtype=value.dtype, device="cpu", requires_grad=requires_grad)


def image_shape(recipe: Recipe) -> tuple[int, int]:
    """Height and width that are counted.

    For detection those of most VOC photos, 375 x 500, resized and padded.
    """
    side = recipe.data.image_size
    if not recipe.detect:
        return side, side
    sides = side, min(side * 4 // 3, recipe.detect.max_size)
    multiple = recipe.detect.size_divisible
    return tuple(math.ceil(side / multiple) * multiple for side in sides)


def _attention_flops(query, key, value, *_, **__) -> int:
    """FLOPs of queries with keys and weights with values; shapes (batch, heads, tokens, width)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def estimate_memory(recipe: Recipe, cost: Cost) -> dict[str, int]:
    """Bytes on each GPU: the complete model and the lanes of one forward pass.

    With batch.lanes_per_forward "auto" that is one lane: more are taken if they fit.
    """
    asked = recipe.batch.lanes_per_forward
    lanes = 1 if asked == "auto" else min(asked, recipe.batch.lanes)
    facts = OPTIMIZERS[recipe.optim.name]
    moments = facts.moments + (facts.momentum_buffer and recipe.optim.momentum > 0)
    memory = {
        "weights": cost.weights,
        "gradients": 4 * cost.trainable,
        "optimizer": 4 * moments * cost.trainable,
        "EMA": cost.weights if recipe.ema.decay is not None else 0,
        "activations": cost.activations * lanes,
        "TrAct": cost.tract_memory,
    }
    return memory | {"allowance": GIB + sum(memory.values()) // 10}


def speed(recipe: Recipe, cost: Cost, gpu: Gpu) -> float:
    """Images/s that one GPU trains: MFU of its peak, or kernel launches; 0 if it lacks bf16."""
    half = recipe.precision.autocast
    if half == "bf16" and not gpu.bf16:
        return 0.0
    lane = recipe.batch.lane_size
    peak = 1e12 * (gpu.half if half else gpu.single)
    return lane / max(lane * cost.training / (MFU * peak), LAUNCHES)


def core_rate(recipe: Recipe) -> float:
    """Images/s that one core prepares, each view from its own file."""
    if recipe.data.pipeline == "exact":
        return CORE_RATE
    return CORE_RATE * FAST["RandAugment" if recipe.augment.rand_augment else "colours"]
