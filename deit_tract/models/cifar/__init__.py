"""The models of TrAct's CIFAR experiments; importing this package registers them with timm."""

from deit_tract.models.cifar.resnet import CifarResNet, cifar_cnn, resnet18_cifar
from deit_tract.models.cifar.vit import vit_cifar

__all__ = ["CifarResNet", "cifar_cnn", "resnet18_cifar", "vit_cifar"]
