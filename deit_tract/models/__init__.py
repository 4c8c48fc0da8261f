"""Networks: timm's by name, our own families registered with timm by the imports below."""

from deit_tract.models import cifar

__all__ = ["cifar"]
