"""TrAct, the layer. This folder needs only torch and may be copied into another project.

from deit_tract.tract import TrAct
net.patch_embed.proj = TrAct(net.patch_embed.proj, lam=0.1)
"""
# ruff: noqa: F401

from .first_layer import apply_to_first_layer, first_layer_name
from .layer import TrAct, TrActConv1d, TrActConv2d, TrActConv3d, TrActLinear, find, remove
from .whole_batch import check_engine, finish_step, reset
