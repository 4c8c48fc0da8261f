"""What a model costs, from shapes alone: FLOPs and saved bytes are counted, memory and speed on a GPU estimated."""

from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from deit_tract.common.errors import UserError
from deit_tract.common.text import GIB
from deit_tract.models import detector
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.plan.gpus import Gpu
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.tract import first_layer_name
from deit_tract.tract.layer import DEVICE_BYTES

# float32 values that an optimizer keeps per parameter
MOMENTS = {"lamb": 2, "adamw": 2, "adam": 2, "sgd": 1}
MFU = 0.35  # choice; published ViT training lies between 0.06 (waiting for data) and 0.55 (ViT-B on an RTX 3090)
FILLING = 256  # images: a choice; lanes below it share a forward on a GPU
LAUNCHES = 5e-3  # s: a GPU's least time for a lane, launching the kernels of a ViT-S forward and backward (an estimate)


_FUSED_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
)  # torch 2.11 does not count it by itself


class Cost(NamedTuple):
    """What a model costs, from shapes alone."""

    parameters: int
    trainable: int  # of the parameters
    weights: int  # bytes of its state dict
    first_layer: str | None
    forward: int  # FLOPs per image
    training: int  # FLOPs per image: forward and backward, without TrAct
    tract: int  # FLOPs per image of TrAct's Gram matrix, 0 without TrAct
    activations: int  # bytes that autograd saves in a lane's forward
    tract_memory: int  # bytes
    gram: int = 0  # bytes of TrAct's Gram matrix in float64, 0 without TrAct


def measure(recipe: Recipe, net: nn.Module) -> Cost:
    """FLOPs and saved bytes of one lane's training forward, run on shapes under the recipe's autocast.

    A backward pass is two forwards, without the gradient that the first layer would send to the images; none is counted
    where the classifier alone is trained, and attention alone saves less than this says.
    Raises UserError where the model does not take the recipe's images.
    """
    net = detector.TraceableDetector(net) if isinstance(net, detector.Detector) else net
    first = first_layer_name(net)
    flops, activations = _trace(recipe, net)
    total, lane = flops["Global"], recipe.batch.lane_size
    at_first = flops.get(f"{type(net).__name__}.{first}", 0)
    gram_flops = gram_memory = gram = 0
    if recipe.model.tract is not None and first is not None:
        layer = net.get_submodule(first)
        rows, columns = at_first // (2 * layer.weight.numel()), layer.weight[0].numel()
        groups = getattr(layer, "groups", 1)
        gram_flops = 2 * rows * columns**2 * groups
        copied = min(8 * rows * columns * groups, DEVICE_BYTES)
        gram = 8 * columns**2 * groups
        gram_memory = copied + 3 * gram  # the matrix, its factor, a solution
    return Cost(
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        trainable=sum(
            parameter.numel() for parameter in net.parameters() if parameter.requires_grad
        ),
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
    """A lane's forward on tensors without numbers: FLOPs by module, and bytes that wait for the backward pass.

    The tensors pose as a CPU's, where attention is the fused one and autocast is as on a GPU.
    """
    data, lane = recipe.data, recipe.batch.lane_size
    half = {None: None, "fp16": torch.float16}.get(recipe.precision.autocast, torch.bfloat16)
    saved: dict[
        int, torch.UntypedStorage
    ] = {}  # each storage once; kept, so that no other gets its number

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        state = {
            name: torch.empty(
                value.shape, dtype=value.dtype, device="cpu", requires_grad=value.requires_grad
            )
            for name, value in state.items()
        }
        images = torch.empty(lane, data.channels, *image_shape(recipe), device="cpu")
        drop_paths = [module for module in net.modules() if isinstance(module, DropPath)]
        draw_drop_path(drop_paths, lane, 0, images.device)
        counter = FlopCounterMode(
            display=False, custom_mapping={_FUSED_ATTENTION: _attention_flops}
        )
        autocast = torch.autocast("cpu", dtype=half, enabled=half is not None)
        try:
            with (
                counter,
                autocast,
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            ):
                torch.func.functional_call(net.train(), state, (images,))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            size = " x ".join(map(str, image_shape(recipe)))
            what = f"{recipe.model.name} does not take {lane} images of {data.channels} x {size} px"
            raise UserError("data.image_size", f"{what} ({str(error).splitlines()[0]})") from None
    own = {value.untyped_storage()._cdata for value in state.values()}
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return flops, sum(storage.nbytes() for key, storage in saved.items() if key not in own)


def image_shape(recipe: Recipe) -> tuple[int, int]:
    """Height and width that are counted: for detection those of most VOC photos, 375 x 500, resized."""
    side = recipe.data.image_size
    return (side, min(side * 4 // 3, recipe.detect.max_size) if recipe.detect else side)


def _attention_flops(query, key, value, *_, **__) -> int:
    """Two products, of queries with keys and of weights with values; shapes (batch, heads, tokens, width)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def estimate_memory(recipe: Recipe, cost: Cost) -> dict[str, int]:
    """Bytes on each GPU, which holds the model whole and a forward's lanes at a time, whatever the number of GPUs.

    With batch.lanes_per_forward "auto", one lane: more are taken where they fit.
    """
    asked = recipe.batch.lanes_per_forward
    lanes = 1 if asked == "auto" else min(asked, recipe.batch.lanes)
    moments = (
        MOMENTS[recipe.optim.name] if recipe.optim.name != "sgd" or recipe.optim.momentum else 0
    )
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
    """Images/s that one GPU trains, at MFU of its peak or bound by kernel launches; 0 where it lacks bf16."""
    autocast = recipe.precision.autocast
    if autocast == "bf16" and not gpu.bf16:
        return 0.0
    lane, peak = recipe.batch.lane_size, 1e12 * (gpu.half if autocast else gpu.single)
    return lane / max(lane * cost.training / (MFU * peak), LAUNCHES)


def precision_name(recipe: Recipe) -> str:
    return {None: "float32", "auto": "bf16 or fp16"}.get(
        recipe.precision.autocast, recipe.precision.autocast
    )


def lanes_together(recipe: Recipe) -> int:
    """Lanes that share a forward on a GPU where memory and model allow it."""
    asked = recipe.batch.lanes_per_forward
    return min(
        recipe.batch.lanes, max(1, FILLING // recipe.batch.lane_size) if asked == "auto" else asked
    )
