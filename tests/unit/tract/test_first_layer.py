"""Which layer of a model is its first, and putting TrAct there."""

import copy

import pytest
import torch
from torch import nn

from deit_tract import tract


def test_first_layers_of_timm_models():
    import timm

    for model, name in {
        "vit_tiny_patch16_224": "patch_embed.proj", "resnet18": "conv1", "resnet18d": "conv1.0",
        "convnext_atto": "stem.0",
    }.items():  # fmt: skip
        net = timm.create_model(model)
        assert tract.apply_to_first_layer(net, 0.2) == name
        assert [found for found, _ in tract.find(net)] == [name] and net.get_submodule(
            name
        ).lam == 0.2
    with pytest.raises(TypeError, match="Conv2dSame"):
        tract.apply_to_first_layer(timm.create_model("tf_mobilenetv3_small_minimal_100"))


def test_first_layers_of_other_models():
    import torchvision.models as zoo

    for net, name in ((zoo.resnet18(), "conv1"), (zoo.alexnet(), "features.0")):
        net.train()
        net.get_submodule(name).eval()
        before = copy.deepcopy(net.state_dict())
        assert tract.apply_to_first_layer(net) == name
        assert net.training and not net.get_submodule(name).training
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.head, self.stem = nn.Linear(4, 2), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.head(self.stem(torch.stack(images)).mean((2, 3)))


def test_first_layer_is_the_one_called_first():
    net = Backwards()
    with pytest.raises(ValueError, match="sample="):
        tract.apply_to_first_layer(net)
    assert tract.apply_to_first_layer(net, sample=[torch.zeros(3, 8, 8)]) == "stem"
    assert not net.stem._forward_pre_hooks
    with pytest.raises(ValueError, match="no convolution"):
        tract.apply_to_first_layer(nn.ReLU())
