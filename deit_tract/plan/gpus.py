"""Known GPUs: peak throughput and memory."""

from typing import NamedTuple

import torch


class Gpu(NamedTuple):
    """Peaks without sparsity, from NVIDIA's data sheets.

    Those of GeForce GPUs (float32 accumulation) are from its architecture papers.
    """

    half: float  # TFLOP/s, bf16 and fp16
    single: float  # TFLOP/s, float32 without TF32
    memory: int  # GiB
    bf16: bool = True


GPUS = {
    "H200": Gpu(989, 67, 140),
    "H100 SXM": Gpu(989, 67, 80),
    "A100 80GB": Gpu(312, 19.5, 80),
    "A40": Gpu(149.7, 37.4, 45),
    "V100 32GB": Gpu(125, 15.7, 32, bf16=False),
    "RTX 4090": Gpu(165.2, 82.6, 24),
    "RTX 3090": Gpu(71.2, 35.6, 24),
}

# as torch.cuda.get_device_name() has them
_DEVICES = {
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA A100 80GB PCIe": "A100 80GB",
    "NVIDIA A100-SXM4-40GB": "A100 80GB",
    "NVIDIA A40": "A40",
    "Tesla V100-SXM2-16GB": "V100 32GB",
    "Tesla V100-SXM2-32GB": "V100 32GB",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
}


def this_gpu(default: str = "A100 80GB") -> str:
    """This machine's GPU as the table has it, or the default one."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return _DEVICES.get(name, default)


def known_peak(device: torch.device, autocast: str | None) -> float | None:
    """FLOP/s of this GPU in the run's precision; None if it is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name not in _DEVICES:
        return None
    gpu = GPUS[_DEVICES[name]]
    return 1e12 * (gpu.half if autocast else gpu.single)


def gain_of_half(name: str) -> float | None:
    """How many times a GPU's float32 peak its 16-bit peak is; None if it is not in the table."""
    if name not in _DEVICES:
        return None
    gpu = GPUS[_DEVICES[name]]
    return gpu.half / gpu.single
