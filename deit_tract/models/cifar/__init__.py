"""The models of TrAct's CIFAR experiments; importing this package registers them with timm."""

from deit_tract.models.cifar.nets import CifarNet, cifar_net
from deit_tract.models.cifar.resnet import CifarResNet, cifar_cnn, resnet18_cifar
from deit_tract.models.cifar.vit import vit_cifar

__all__ = ["CifarNet", "CifarResNet", "cifar_cnn", "cifar_net", "resnet18_cifar", "vit_cifar"]
