"""Small transformers of the kinds that models/elastic.py cuts."""

import timm
import torch
from torch import nn

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 6}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 2), "num_heads": (3, 6)}
SWIN |= {"drop_path_rate": 0.0}
PVT = {"embed_dims": (16, 32, 48), "depths": (1, 1, 1), "num_heads": (1, 2, 3)}
PVT |= {"sr_ratios": (2, 2, 1), "mlp_ratios": (4, 4, 4)}
NETS = {
    "ViT": ("deit_tiny_patch16_224", VIT),
    "ViT, LayerScale": ("deit3_small_patch16_224", VIT | {"init_values": 0.1}),
    "Swin": ("swin_tiny_patch4_window7_224", SWIN),
    "PVTv2": ("pvt_v2_b0", PVT),
    "PVTv2, linear": ("pvt_v2_b2_li", PVT),
}


def small(kind: str, **others) -> nn.Module:
    """A plain timm model of 10 classes for images of 32 px, with weights of its own."""
    name, arguments = NETS[kind]
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10, **arguments | others)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases start at zero
    return net
