"""Every setting of a recipe: sections and fields with type, limits and meaning.

To add a setting, add a field. `Free[...]` marks what may change when a run resumes,
`ForClassify[...]` and `ForDetect[...]` what only one task reads.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from deit_tract.recipe.datasets import TRAINABLE
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.settings.base import (
    Count,
    CountOrZero,
    Epochs,
    ForClassify,
    ForDetect,
    Fraction,
    Free,
    KeyPath,
    NonNegative,
    Pair,
    Percent,
    Positive,
    Probability,
    Section,
)
from deit_tract.recipe.settings.detect import FasterRcnn


class Headline(NamedTuple):
    """The metric, in percent, that decides which evaluation is the best."""

    metric: str  # its name in metrics.jsonl and under `expect`
    title: str  # in sentences and tables


HEADLINES = {"classify": Headline("top1", "top-1"), "detect": Headline("map07", "mAP07")}  # by task


class Model(Section):
    name: str = Field(description="timm model name; task detect: fasterrcnn_vgg16")
    args: dict[str, Any] = Field(
        {}, description="more arguments of timm.create_model; task detect: width (64), fc (4096)"
    )
    class_token_std: ForClassify[Positive | None] = Field(
        None, description="of the class token's truncated normal init; null keeps timm's, 1e-6"
    )
    pretrained: bool = Field(False, description="needs weights: finetune.py --checkpoint")
    new_head: ForClassify[bool] = Field(
        False, description="a new classifier: that of the given weights is not loaded"
    )
    train: ForClassify[Literal["all", "attn", "head"]] = Field(
        "all",
        description="what is trained; head: only the classifier; attn: also attention and "
        "position embedding (DeiT's --attn-only); BatchNorm's statistics always move",
    )
    drop_path: ForClassify[Fraction] = Field(
        0.0, description="stochastic depth rate, the same in every block"
    )
    drop_path_mode: ForClassify[Literal["mask", "subset"]] = Field(
        "mask",
        description="mask: each sample drops at the rate; subset: a fixed share of a lane does "
        "and is not computed",
    )
    tract: Positive | None = Field(
        None, description="TrAct's lambda on the first layer; null trains it as usual"
    )
    tract_gram: Literal["lane", "batch"] = Field(
        "lane", description="TrAct's Gram matrix: one per lane (the paper) or one of the batch"
    )
    unfreeze_from: ForDetect[Annotated[int, Field(ge=0, le=13)]] = Field(
        0, description="task detect: number of leading VGG convolutions that stay frozen"
    )


class Data(Section):
    name: Literal[*TRAINABLE] = Field(description="data set")
    dir: Free[str | None] = Field(None, description="its folder; usually given as --data-dir")
    image_size: Count = Field(
        description="px, height and width that the model sees; task detect: shorter side"
    )
    channels: Literal[1, 3] = Field(3, description="1: greyscale, 3: RGB")
    classes: Count = Field(description="number of classes, checked against the data")
    mean: list[float] = Field(
        [0.485, 0.456, 0.406], description="per channel, subtracted after scaling to [0, 1]"
    )
    std: list[Positive] = Field([0.229, 0.224, 0.225], description="per channel, divided by")
    workers: Free[Annotated[int, Field(ge=0, le=1024)]] = Field(
        4, description="loader processes per training process"
    )
    resident: ForClassify[Free[bool]] = Field(
        False,
        description="keep the images on the device as one uint8 tensor of image_size; supports "
        "only crop_padding and flip",
    )
    pipeline: ForClassify[Literal["exact", "fast"]] = Field(
        "exact",
        description="training images: PIL to the last bit, or faster resizes that round otherwise",
    )
    verify: Free[bool] = Field(
        True, description="require the data set's official counts; false accepts a part of it"
    )
    skip_unreadable: Free[Annotated[int, Field(ge=0)]] = Field(
        0, description="replace up to N unreadable training images; one more aborts the run"
    )


class Batch(Section):
    size: Count = Field(description="images per optimizer step over all processes, with repeats")
    lanes: Count = Field(
        description="equal parts of a batch, each with its own mixup draw, drop path, Gram matrix"
    )
    exact: bool = Field(
        False,
        description="sum the lanes' gradients in their order: the same bits on any number of "
        "processes; slow",
    )
    lanes_per_forward: ForClassify[Free[Count | Literal["auto"]]] = Field(
        "auto",
        description="lanes that share a forward pass, equal up to rounding; auto: on a GPU, as "
        "many as fill it",
    )

    @property
    def lane_size(self) -> int:
        return self.size // self.lanes


class Affine(Section):
    degrees: NonNegative = Field(0.0, description="largest rotation either way")
    translate: Fraction = Field(0.0, description="largest shift as a fraction of the image")
    scale: Pair = Field((1.0, 1.0), description="range of the zoom factor")


class Augment(Section):
    repeats: Count = Field(
        1, description="repeated augmentation: views of an image per epoch's order"
    )
    crop_scale: ForClassify[Pair | None] = Field(
        None, description="area range of a random resized crop; null only resizes"
    )
    crop_padding: ForClassify[CountOrZero] = Field(
        0, description="without crop_scale: px added around the resized image, then a random crop"
    )
    crop_fill: ForClassify[Literal["reflect", "zero"]] = Field(
        "reflect", description="what crop_padding adds: the image, or black"
    )
    crop_ratio: ForClassify[Pair] = Field(
        (3 / 4, 4 / 3), description="aspect range of a random resized crop"
    )
    interpolation: ForClassify[Literal["bicubic", "bilinear"]] = Field(
        "bicubic", description="of every resize and warp"
    )
    flip: Probability = Field(0.0, description="probability of a horizontal flip")
    affine: ForClassify[Affine | None] = Field(None, description="random rotation, shift and zoom")
    rand_augment: ForClassify[str | None] = Field(
        None, description="timm's RandAugment policy, as rand-m9-mstd0.5-inc1"
    )
    auto_augment: ForClassify[Literal["cifar10"] | None] = Field(
        None, description="AutoAugment's policy found on a data set"
    )
    three_augment: ForClassify[bool] = Field(
        False, description="one of greyscale, solarize, blur on every image (DeiT-III)"
    )
    color_jitter: ForClassify[NonNegative] = Field(
        0.0, description="strength for brightness, contrast and saturation"
    )


class Mix(Section):
    mixup: NonNegative = Field(0.0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: NonNegative = Field(0.0, description="alpha of cutmix's Beta distribution; 0 is off")
    prob: Probability = Field(1.0, description="probability that a lane is mixed at all")
    switch_prob: Probability = Field(0.5, description="probability of cutmix when both are on")


class Loss(Section):
    name: Literal["bce", "ce"] = Field(
        description="bce: binary cross-entropy on (target > 0); ce: soft cross-entropy"
    )
    smoothing: Fraction = Field(0.0, description="label smoothing, only for ce")


class FirstLayer(Section):
    lr: Positive = Field(description="its peak learning rate, on the schedule of optim.lr")
    momentum: Fraction = Field(0.9, description="its momentum")


class Optim(Section):
    name: Literal[*OPTIMIZERS] = Field(description="optimizer")
    lr: Positive = Field(description="peak learning rate, not scaled by the batch size")
    weight_decay: NonNegative = Field(
        0.0, description="on tensors of two and more dimensions, except the model's skips"
    )
    decay_all: bool = Field(
        False, description="weight decay on every parameter, as torch's optimizers by default"
    )
    betas: Pair = Field((0.9, 0.999), description="all but sgd")
    eps: Positive = Field(1e-8, description="all but sgd")
    momentum: Fraction = Field(0.9, description="sgd")
    first_layer: FirstLayer | None = Field(
        None, description="SGD for the first layer, undecayed; null: as the others"
    )
    clip_grad: Positive | None = Field(None, description="global gradient norm limit; null is off")
    bias_lr: Positive = Field(1.0, description="factor on the learning rate of biases")


class Schedule(Section):
    name: Literal["cosine", "constant", "multistep"] = Field(
        "cosine", description="after the warm-up; the cosine spans the complete run"
    )
    milestones: list[Epochs] = Field(
        [], description="epochs after which multistep multiplies the learning rate"
    )
    gamma: Positive = Field(0.1, description="multistep's factor")
    epochs: Epochs | None = Field(None, description="length of the run, or")
    steps: Count | None = Field(None, description="length of the run")
    warmup_epochs: Annotated[float, Field(ge=0, le=1e6)] | None = Field(
        None, description="linear warm-up, or"
    )
    warmup_steps: CountOrZero | None = Field(None, description="linear warm-up")
    update: Literal["step", "epoch"] = Field(
        "step", description="epoch: one lr per epoch, one epoch late, as DeiT's loop"
    )
    warmup_lr: NonNegative = Field(0.0, description="learning rate at step 0 of the warm-up")
    min_lr: NonNegative = Field(0.0, description="floor of the cosine")


class Precision(Section):
    autocast: Literal["bf16", "fp16", "auto"] | None = Field(
        None,
        description="mixed precision; null is float32; auto: bf16, on CUDA GPUs without it fp16",
    )
    compile: ForClassify[Free[bool]] = Field(
        False, description="torch.compile the model for training; minutes at the start"
    )


class Ema(Section):
    decay: Fraction | None = Field(
        None, description="of the weights' moving average; null keeps none"
    )


class Evaluate(Section):
    every_epochs: Epochs | None = Field(None, description="and always at the end, or")
    every_steps: Count | None = Field(None, description="and always at the end")
    batch_size: Free[Count] = Field(256, description="images per process and forward")
    crop: ForClassify[Annotated[float, Field(gt=0, le=1)]] = Field(
        1.0, description="centre crop as a fraction of the resized side"
    )
    pictures: ForDetect[Free[Annotated[int, Field(ge=0)]]] = Field(
        0, description="task detect: images drawn with their detections"
    )


class Save(Section):
    every_epochs: Epochs | None = Field(None, description="and always at the end, or")
    every_steps: Count | None = Field(None, description="and always at the end")
    keep: Count = Field(2, description="newest checkpoints kept")
    background: bool = Field(
        False, description="write while training continues; costs a copy of the state in memory"
    )


class Log(Section):
    every_steps: Count = Field(
        50, description="steps between two log lines; each waits for the GPU"
    )
    trackers: list[Literal["tensorboard"]] = Field([], description="besides metrics.jsonl")
    peak_tflops: Positive | None = Field(
        None, description="TFLOP/s of a device, for MFU; null: looked up for known GPUs"
    )
    profile: Count | None = Field(
        None, description="first of three steps that a profiler trace records"
    )


class Faults(Section):
    timeout: Positive = Field(
        600.0, description="seconds until a silent process is named and the run ends"
    )
    skip_steps: list[Count] = Field(
        [], description="steps, as a log names them, whose batch and update are skipped"
    )


class Expect(Section):
    top1: ForClassify[Percent | None] = Field(None, description="percent, final; null is unknown")
    map07: ForDetect[Percent | None] = Field(None, description="percent, final; task detect")
    source: str | None = Field(None, description="where that number comes from")
    cost: str | None = Field(None, description="time on named hardware")
    published: str | None = Field(
        None, description="published run to compare with; ENTRY/RESULT also gives the number above"
    )


class Recipe(Section):
    about: Free[str] = Field(description="one line: what it is")
    task: Literal["classify", "detect"] = Field(
        "classify", description="what the model learns to do"
    )
    model: Model
    data: Data
    batch: Batch
    augment: Augment = Augment()
    mix: ForClassify[Mix] = Mix()
    loss: ForClassify[Loss | None] = Field(None, description="task classify")
    detect: ForDetect[FasterRcnn | None] = Field(None, description="task detect")
    optim: Optim
    schedule: Schedule
    precision: Precision = Precision()
    ema: Ema = Ema()
    evaluate: Evaluate = Evaluate()
    save: Free[Save] = Save()
    log: Free[Log] = Log()
    # faults may change to resume after a fault, although that changes a step
    faults: Free[Faults] = Faults()
    expect: Free[Expect] = Expect()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of every random draw of the run"
    )

    _name: str = PrivateAttr("")
    _origins: dict[KeyPath, str] = PrivateAttr({})

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self._name

    @property
    def headline(self) -> str:
        """The metric, in percent, that decides which evaluation is the best."""
        return HEADLINES[self.task].metric

    @property
    def expected(self) -> float | None:
        """What the headline metric should reach; None if unknown."""
        return getattr(self.expect, self.headline)
