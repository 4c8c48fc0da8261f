"""The way to a device."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on the device, without waiting for it: from pageable memory CUDA may wait for the stream."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
