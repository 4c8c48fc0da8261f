"""GoogLeNet, the Inceptions and Xception for 32 px (nets.py)."""

from functools import partial

from torch import nn

from deit_tract.models.cifar.blocks import Cat, Multiply, Network, Residual, chain, conv, separable

MEAN = partial(nn.AvgPool2d, 3, 1, 1)
TALL = (7, 1)
WIDE = (1, 7)
SHORTCUT = {"bias": True, "act": None}


def googlenet(images: int) -> Network:
    """GoogLeNet (Inception-v1) with batch normalisation, two 3x3 in place of a 5x5."""
    blocks = """
        64 96 128 16 32 32, 128 128 192 32 96 64, pool,
        192 96 208 16 48 64, 160 112 224 24 64 64, 128 128 256 24 64 64,
        112 144 288 32 64 64, 256 160 320 32 128 128, pool,
        256 160 320 32 128 128, 384 192 384 48 128 128"""
    layers = [*chain(images, (64, 3), (64, 3), (192, 3)), nn.MaxPool2d(3, 2, 1)]
    before = 192
    for block in blocks.split(","):
        if "pool" in block:
            layers.append(nn.MaxPool2d(3, 2, 1))
            continue
        one, to_three, three, to_five, five, pooled = map(int, block.split())
        double = nn.Sequential(
            conv(before, to_five, bias=True),
            # the reference passes the channels a second time, as eps
            conv(to_five, five, 3, bias=True, eps=five),
            conv(five, five, 3, bias=True),
        )
        branches = [
            conv(before, one, bias=True),
            chain(before, (to_three,), (three, 3), bias=True),
            double,
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(before, pooled, bias=True)),
        ]
        layers.append(Cat(*branches))
        before = one + three + five + pooled
    return layers, before


def inceptionv3(images: int) -> Network:
    """Inception-v3 without strides in its stem and without the second classifier."""
    layers = [*chain(images, (32, 3), (32, 3), (64, 3), (80,), (192, 3, 1, 0))]
    before = 192
    for pooled in (32, 64, 64):
        towers = [((64,),), ((48,), (64, 5)), ((64,), (96, 3), (96, 3))]
        layers.append(_towers(before, *towers, pooled=conv(before, pooled, 3)))
        before = 224 + pooled
    towers = [((384, 3, 2, 0),), ((64,), (96, 3), (96, 3, 2, 0))]
    layers.append(_reduce(before, *towers))
    for inner in (128, 160, 160, 192):
        twice = ((inner,), (inner, TALL), (inner, WIDE))
        towers = [((192,),), (*twice[:2], (192, WIDE)), (*twice, (inner, TALL), (192, WIDE))]
        layers.append(_towers(768, *towers, pooled=conv(768, 192)))
    towers = [((192,), (320, 3, 2, 0)), ((192,), (192, WIDE), (192, TALL), (192, 3, 2, 0))]
    layers.append(_reduce(768, *towers, pool=nn.AvgPool2d(3, 2)))
    for before in (1280, 2048):
        split = Cat(conv(384, 384, (1, 3)), conv(384, 384, (3, 1)))
        again = Cat(conv(384, 384, (1, 3)), conv(384, 384, (3, 1)))
        branches = [
            conv(before, 320),
            nn.Sequential(conv(before, 384), split),
            nn.Sequential(chain(before, (448,), (384, 3)), again),
            nn.Sequential(MEAN(), conv(before, 192)),
        ]
        layers.append(Cat(*branches))
    return layers, 2048


def inceptionv4(images: int) -> Network:
    """Inception-v4 without strides in its stem; its first layer makes 30 px of 32."""
    layers = _stem(images)
    for _ in range(4):
        towers = [((64,), (96, 3), (96, 3)), ((64,), (96, 3)), ((96,),)]
        layers.append(_towers(384, *towers, pooled=conv(384, 96)))
    layers.append(_reduce(384, ((192,), (224, 3), (256, 3, 2, 0)), ((384, 3, 2, 0),)))
    for _ in range(7):
        once = ((192,), (224, WIDE), (256, TALL))
        twice = ((192,), (192, WIDE), (224, TALL), (224, WIDE), (256, TALL))
        layers.append(_towers(1024, ((384,),), once, twice, pooled=conv(1024, 128)))
    towers = [((192,), (192, 3, 2)), ((256,), (256, WIDE), (320, TALL), (320, 3, 2))]
    layers.append(_reduce(1024, *towers, pool=nn.MaxPool2d(3, 2, 1)))
    for _ in range(3):
        short = Cat(conv(384, 256, (3, 1)), conv(384, 256, (1, 3)))
        long = Cat(conv(512, 256, (1, 3)), conv(512, 256, (3, 1)))
        branches = [
            conv(1536, 256),
            nn.Sequential(conv(1536, 384), short),
            nn.Sequential(chain(1536, (384,), (448, (1, 3)), (512, (3, 1))), long),
            nn.Sequential(MEAN(), conv(1536, 256)),
        ]
        layers.append(Cat(*branches))
    return layers, 1536


def inception_resnet_v2(images: int) -> Network:
    """Inception-ResNet-v2; its blocks normalise the sum, and have a convolution as shortcut."""
    stages = (
        (384, 5, 1.0, [((32,),), ((32,), (32, 3)), ((32,), (48, 3), (64, 3))]),
        (1154, 10, 0.1, [((192,),), ((128,), (160, WIDE), (192, TALL))]),
        (2048, 5, 0.1, [((192,),), ((192,), (224, (1, 3)), (256, (3, 1)))]),
    )
    layers = _stem(images)
    before = 384
    for width, count, scale, towers in stages:
        for _ in range(count):
            layers.append(_scaled(before, width, scale, towers))
            before = width
        if width == 384:
            layers.append(_reduce(384, ((256,), (256, 3), (384, 3, 2, 0)), ((384, 3, 2, 0),)))
            before = 1152
        elif width == 1154:
            ends = ((256,), (384, 3, 2, 0)), ((256,), (288, 3, 2, 0))
            layers.append(_reduce(1154, *ends, ((256,), (288, 3), (320, 3, 2, 0))))
            before = 2146
    return layers, before


def _stem(images: int) -> list[nn.Module]:
    """Inception-v4's stem without its strides, to 384 channels."""
    second = Cat(chain(160, (64,), (64, TALL), (64, WIDE), (96, 3)), chain(160, (64,), (96, 3)))
    return [
        *chain(images, (32, 3, 1, 0), (32, 3), (64, 3)),
        Cat(conv(64, 96, 3), nn.MaxPool2d(3, 1, 1)),
        second,
        Cat(nn.MaxPool2d(3, 1, 1), conv(192, 192, 3)),
    ]


def _towers(before: int, *towers: tuple, pooled: nn.Module) -> Cat:
    mean = nn.Sequential(MEAN(), pooled)
    return Cat(*(chain(before, *steps) for steps in towers), mean)


def _reduce(before: int, *towers: tuple, pool: nn.Module | None = None) -> Cat:
    return Cat(*(chain(before, *steps) for steps in towers), pool or nn.MaxPool2d(3, 2))


def _scaled(before: int, width: int, scale: float, towers: list[tuple]) -> nn.Sequential:
    """Make a block of Inception-ResNet."""
    inner = sum(steps[-1][0] for steps in towers)
    cat = Cat(*(chain(before, *steps) for steps in towers))
    body = nn.Sequential(cat, nn.Conv2d(inner, width, 1), Multiply(scale))
    block = Residual(body, nn.Conv2d(before, width, 1))
    return nn.Sequential(block, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def xception(images: int) -> Network:
    """Xception; the ReLU before a block acts on its shortcut, too, but for the last block."""
    layers = [conv(images, 32, 3), conv(32, 64, 3)]
    layers.append(Residual(_separables(64, 128, 128, pool=2), conv(64, 128, 1, 2, **SHORTCUT)))
    for before, width, stride in ((128, 256, 2), (256, 728, 1)):
        body = _separables(before, width, width, pool=stride)
        block = Residual(body, conv(before, width, 1, stride, **SHORTCUT))
        layers += [nn.ReLU(inplace=True), block]
    for _ in range(8):
        layers += [nn.ReLU(inplace=True), Residual(_separables(728, 728, 728, 728))]
    body = nn.Sequential(nn.ReLU(), _separables(728, 728, 1024, pool=2))
    layers.append(Residual(body, conv(728, 1024, 1, 2, **SHORTCUT)))
    layers += [_separables(1024, 1536, 2048), nn.ReLU(inplace=True)]
    return layers, 2048


def _separables(before: int, *widths: int, pool: int | None = None) -> nn.Sequential:
    """Make separable convolutions with batch normalisation, ReLU between them, and a max-pool."""
    layers = []
    for width in widths:
        layers += [separable(before, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        before = width
    pooling = [] if pool is None else [nn.MaxPool2d(3, pool, 1)]
    return nn.Sequential(*layers[:-1], *pooling)
