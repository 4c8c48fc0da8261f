"""`cifar_net`: the 36 networks of TrAct's Tables 1, 6 and 7 for 32 px, by `model.args.net`.

The structures are those of github.com/weiaicunzai/pytorch-cifar100 (at 11d8418), which the paper
names, with all they have of their own: biases beside batch normalisation, ReLUs left out, an eps.
Every one is `features`, whose first layer is `features.0.0`, the mean over positions, and `fc`.
"""

from collections.abc import Callable
from functools import partial

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from deit_tract.models.cifar import inception, mobile, nasnet, residual
from deit_tract.models.cifar.blocks import Network
from deit_tract.models.cifar.config import cifar_cfg

default_cfgs = generate_default_cfgs({"cifar_net.untrained": cifar_cfg("features.0.0", "fc")})

FAMILIES: dict[str, tuple[Callable[..., Network], str]] = {  # name without depth: depths
    "squeezenet": (mobile.squeezenet, ""),
    "mobilenet": (mobile.mobilenet, ""),
    "mobilenetv2": (mobile.mobilenetv2, ""),
    "shufflenet": (mobile.shufflenet, ""),
    "shufflenetv2": (mobile.shufflenetv2, ""),
    "vgg": (residual.vgg, "11 13 16 19"),
    "densenet": (residual.densenet, "121 161 201"),
    "googlenet": (inception.googlenet, ""),
    "inceptionv3": (inception.inceptionv3, ""),
    "inceptionv4": (inception.inceptionv4, ""),
    "inceptionresnetv2": (inception.inception_resnet_v2, ""),
    "xception": (inception.xception, ""),
    "resnet": (partial(residual.resnet, ""), "18 34 50 101 152"),
    "resnext": (partial(residual.resnet, "next"), "50 101 152"),
    "seresnet": (partial(residual.resnet, "se"), "18 34 50 101 152"),
    "nasnet": (nasnet.nasnet, ""),
    "wideresnet": (residual.wide_resnet, ""),
    "stochasticdepth": (partial(residual.resnet, "drop"), "18 34 50 101"),
}
NETS: dict[str, Callable[[int], Network]] = {  # given the images' channels
    f"{family}{depth}": partial(make, depth) if depth else make
    for family, (make, depths) in FAMILIES.items()
    for depth in depths.split() or [""]
}
DROPOUT = {"googlenet": 0.4, "inceptionv3": 0.5, "inceptionv4": 0.2, "inceptionresnetv2": 0.2}


class CifarNet(nn.Module):
    """One of NETS; the start values are torch's."""

    def __init__(self, net: str, num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        if net not in NETS:
            raise ValueError(f"net is one of {', '.join(NETS)}, not {net!r}")
        layers, width = NETS[net](in_chans)
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(DROPOUT.get(net, 0.0))
        self.hidden = nn.Identity()
        if net.startswith("vgg"):
            first = [nn.Linear(width, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
            second = [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
            self.hidden = nn.Sequential(*first, *second)
            width = 4096
        self.num_classes = num_classes
        self.num_features = width
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the last maps, as timm's models call it."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits, or to what the classifier sees (b, num_features)."""
        x = self.hidden(self.dropout(x.mean((2, 3))))
        return x if pre_logits else self.fc(x)


@register_model
def cifar_net(pretrained: bool = False, **options) -> CifarNet:
    """Build one of the 36 networks; `net`: a key of NETS."""
    return build_model_with_cfg(CifarNet, "cifar_net", pretrained, **options)
