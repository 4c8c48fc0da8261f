"""How well the first step of a run moves the first layer's activations as their gradient asks.

TrAct wants the activations z = A W^T, with the layer's inputs or patches as rows of A [b, n], to
move as a gradient step on z itself would move them (the paper's Figure 1 and equation 4): along
-g, g = dL/dz [b, m]. A weight change dW moves them by A dW^T, which in general cannot be -g. The
nearest is the least-squares fit of -g by the columns of A, and its cosine with -g is the most that
any dW reaches. A step is that of gradient descent, without the optimizer's scaling.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from deit_tract.common.colors import OKABE_ITO
from deit_tract.common.errors import UserError
from deit_tract.common.files import write_atomic
from deit_tract.common.text import table
from deit_tract.data.feed import make_feed
from deit_tract.data.stream import Stream
from deit_tract.recipe.settings.recipe import Recipe
from deit_tract.results.statistics import Spread, interval, paired, spread
from deit_tract.tasks.classify import Classify

TENTH = 10  # the share of patches with most, or least, contrast
COLUMNS = ("recipe", "lambda", "seed", "cosine", "best", "asked", "moved")


class Step(NamedTuple):
    """The first step of one run."""

    recipe: str
    lam: str  # "" without TrAct
    seed: int
    cosine: float  # of the activations' change with -g
    best: float  # that of the least-squares fit
    asked: float  # |g| of the tenth of patches with most contrast over that with least
    moved: float  # the same of the activations' change

    @property
    def share(self) -> float:
        return self.cosine / self.best

    @property
    def arm(self) -> str:
        return f"TrAct {self.lam}" if self.lam else "plain"


def measure(recipe: Recipe, images: Dataset, name: str) -> Step:
    """Measure the first step of a recipe's run on its first lane, on the CPU.

    Raises UserError if the first layer is not a plain convolution of images.
    """
    task = Classify(recipe, images)
    layer = _first_layer(task.model)
    batch = recipe.batch
    order = Stream(len(images), batch.lanes, batch.lane_size, recipe.augment.repeats, recipe.seed)
    feed = make_feed(task.source, order, [0], 0, torch.device("cpu"))
    seen: dict[str, Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.update(input=inputs[0].detach(), output=output.detach().clone())
        output.register_hook(lambda gradient: seen.update(gradient=gradient))

    layer.register_forward_hook(keep)
    task.model.train()
    losses = task.loss(task.model, [next(feed.batches(range(1)))], [order.lane_seed(0, 0)])
    losses["loss"].backward()
    patches = _patches(layer, seen["input"])
    _check_patches(patches, layer, _rows(seen["output"]), task.model)
    wanted = -_rows(seen["gradient"])
    lam = "" if recipe.model.tract is None else f"{recipe.model.tract:g}"
    return Step(name, lam, recipe.seed, *figures(patches, wanted, -layer.weight.grad.flatten(1)))


def figures(patches: Tensor, wanted: Tensor, change: Tensor) -> tuple[float, ...]:
    """Return cosine, best, asked, moved (see Step) of a weight change [m, n].

    patches: A [b, n], wanted: -g [b, m].
    """
    moved = patches @ change.double().mT
    fit = patches @ torch.linalg.lstsq(patches, wanted).solution
    cosine = F.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0)
    order = patches.std(dim=1).argsort()
    tenth = max(1, len(order) // TENTH)

    def by_contrast(rows: Tensor) -> float:
        norms = rows.norm(dim=1)[order]
        return float(norms[-tenth:].mean() / norms[:tenth].mean())

    return float(cosine), float(fit.norm() / wanted.norm()), by_contrast(wanted), by_contrast(moved)


def _first_layer(model: nn.Module) -> nn.Conv2d:
    name = model.pretrained_cfg.get("first_conv")
    layer = dict(model.named_modules()).get(name) if isinstance(name, str) else None
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        raise _no_plain_convolution(model)
    return layer


def _patches(layer: nn.Conv2d, images: Tensor) -> Tensor:
    window = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return F.unfold(images.double(), *window).mT.flatten(0, 1)


def _rows(maps: Tensor) -> Tensor:
    """Return maps (b, channels, h, w) as rows (b * h * w, channels), in the patches' order."""
    return maps.double().flatten(2).mT.flatten(0, 1)


def _check_patches(patches: Tensor, layer: nn.Conv2d, output: Tensor, model: nn.Module) -> None:
    """Raise UserError if the layer does something else than multiply patches by its weight."""
    weight = layer.weight.detach().flatten(1).double()
    if len(patches) != len(output) or patches.shape[1] != weight.shape[1]:
        raise _no_plain_convolution(model)
    product = patches @ weight.mT
    if layer.bias is not None:
        product += layer.bias.detach()
    if (product - output).norm() > 0.02 * output.norm():  # bfloat16 rounds to 0.004
        raise _no_plain_convolution(model)


def _no_plain_convolution(model: nn.Module) -> UserError:
    what = f"{type(model).__name__}'s first layer is not a plain convolution of images"
    return UserError("model.name", what, "choose another recipe")


# ---- reporting -----------------------------------------------------------------------------------


def cells(steps: Iterable[Step]) -> dict[str, dict[str, list[Step]]]:
    """Group steps by recipe and arm, in their order."""
    found: dict[str, dict[str, list[Step]]] = {}
    for step in steps:
        found.setdefault(step.recipe, {}).setdefault(step.arm, []).append(step)
    return found


def markdown(steps: Sequence[Step]) -> str:
    """Return a table of means over seeds, gains over the first arm paired by seed."""
    rows = []
    for recipe, arms in cells(steps).items():
        shares = {arm: {step.seed: step.share for step in own} for arm, own in arms.items()}
        first = next(iter(arms))
        for arm, own in arms.items():
            gains = paired(shares[first], shares[arm]).values()
            gain = "" if arm == first else _gain(spread(gains))
            digits = {"share": 2, "cosine": 3, "best": 3, "asked": 2, "moved": 2}
            share, *others = [
                _mean(spread([getattr(step, kind) for step in own]), places)
                for kind, places in digits.items()
            ]
            rows.append([recipe, arm, share, gain, *others])
    columns = ("recipe", "first layer", "share of the best", "gain", "cosine", "best cosine")
    return table((*columns, "contrast: asked", "moved"), rows)


def _mean(over: Spread, places: int) -> str:
    sd = "" if over.sd is None else f" ± {over.sd:.{places}f}"
    return f"{over.mean:.{places}f}{sd}"


def _gain(over: Spread) -> str:
    return f"{over.mean:+.2f}, {interval(over, 'seed')}"


def write_csv(steps: Iterable[Step], file: Path) -> None:
    lines = [",".join(COLUMNS)]
    for step in steps:
        numbers = [f"{value:.6g}" for value in step[3:]]
        lines.append(",".join([*map(str, step[:3]), *numbers]))
    write_atomic(file, "\n".join(lines) + "\n")


def plot(steps: Sequence[Step], file: Path) -> None:
    """Draw each seed's share of the best as a dot, and the mean of an arm as a line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = cells(steps)
    size = (3.4 * len(found) + 0.6, 3.2)
    figure, axes = pyplot.subplots(
        1, len(found), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (recipe, arms) in zip(axes[0], found.items(), strict=True):
        for place, own in enumerate(arms.values()):
            shares = [step.share for step in own]
            color = OKABE_ITO[4 if own[0].lam else 5]
            axis.plot([place] * len(shares), shares, "o", color=color, alpha=0.5, markersize=4)
            axis.hlines(spread(shares).mean, place - 0.3, place + 0.3, color=color, linewidth=2)
        axis.set(title=recipe, xlim=(-0.6, len(arms) - 0.4), ylim=(0, 1.05))
        axis.set_xticks(range(len(arms)), arms)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("cosine with -gradient / best")
    figure.savefig(file, dpi=90)
