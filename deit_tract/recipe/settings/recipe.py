"""Every setting of a recipe: sections and fields with type, limits and meaning.

To add a setting, add a field. `Free[...]` marks what may change when a run resumes,
`ForClassify[...]` and `ForDetect[...]` what only one task reads.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from deit_tract.recipe.datasets import TRAINABLE
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.settings.base import (
    Betas,
    Classes,
    Count,
    CountOrZero,
    Deviation,
    Epochs,
    EpochsOrZero,
    Epsilon,
    Factor,
    Few,
    ForAll,
    ForClassify,
    ForDetect,
    Fraction,
    Free,
    KeyPath,
    LearningRate,
    LearningRateOrZero,
    Percent,
    Pixels,
    Probability,
    Range,
    Seconds,
    Section,
    Strength,
    key,
)
from deit_tract.recipe.settings.detect import FasterRcnn


class Headline(NamedTuple):
    """The metric that decides which evaluation is the best."""

    metric: str  # its name in metrics.jsonl and under `expect`
    title: str  # in sentences and tables
    higher: bool = True  # is better; a loss's lower one is

    def is_better(self, value: float, other: float) -> bool:
        return value > other if self.higher else value < other


HEADLINES = {"classify": Headline("top1", "top-1"), "detect": Headline("map07", "mAP07")}  # by task


class Model(Section):
    name: str | None = key(
        "timm model name; null: that of the given weights; task detect: fasterrcnn_vgg16"
    )
    args: dict[str, Any] = key({}, "of timm.create_model; task detect: width (64), fc (4096)")
    class_token_std: ForClassify[Deviation | None] = key(
        None, "of the class token's init; null: timm's, 1e-6"
    )
    pretrained: bool = key(False, "needs weights: finetune.py --checkpoint")
    new_head: ForClassify[bool] = key(False, "new classifier instead of the given weights'")
    train: ForClassify[Literal["all", "attn", "head"]] = key(
        "all",
        "what is trained; head: only the classifier; attn: also attention and position embedding "
        "(DeiT's --attn-only); BatchNorm's statistics always move",
    )
    drop_path: ForClassify[Fraction] = key(0.0, "stochastic depth rate")
    drop_path_rule: ForClassify[Literal["same", "rising"]] = key(
        "same", "same: in every block; rising: from 0 in the first block, as timm has it"
    )
    drop_path_mode: ForClassify[Literal["mask", "subset"]] = key(
        "mask", "mask: each sample drops at the rate; subset: a fixed share of a lane, not computed"
    )
    tract: Factor | None = key(None, "TrAct's lambda on the first layer; null trains it as usual")
    tract_gram: Literal["lane", "batch"] = key(
        "lane", "TrAct's Gram matrix: per lane (the paper) or batch"
    )
    checkpointing: ForClassify[Free[bool]] = key(
        False, "compute activations again in the backward pass: less memory, same gradients"
    )
    unfreeze_from: ForDetect[Annotated[int, Field(ge=0, le=13)]] = key(
        0, "leading VGG convolutions that stay frozen"
    )


class Data(Section):
    name: Literal[*TRAINABLE] = key("data set")
    dir: Free[str | None] = key(None, "its folder; usually given as --data-dir")
    image_size: Pixels = key("px, height and width that the model sees; task detect: shorter side")
    channels: Literal[1, 3] = key(3, "1: greyscale, 3: RGB")
    classes: Classes | None = key(
        "number of classes, checked against the data; null: counted in class folders"
    )
    mean: Annotated[list[Probability], Field(max_length=3)] | None = key(
        [0.485, 0.456, 0.406], "per channel, in [0, 1], subtracted; null: the given weights' own"
    )
    std: Annotated[list[Deviation], Field(max_length=3)] | None = key(
        [0.229, 0.224, 0.225], "per channel, divided by; null: the given weights' own"
    )
    split: Annotated[float, Field(gt=0, lt=1)] | None = key(
        None, "share of the images held out for validation if a folder has no validation part"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = key(
        0, "with each file's name it decides what data.split holds out, and what data.share keeps"
    )
    share: ForClassify[Annotated[float, Field(gt=0, le=1)]] = key(
        1.0, "share of the training images used, drawn at random"
    )
    workers: Free[Annotated[int, Field(ge=0, le=256)]] = key(4, "loaders per process")
    resident: ForClassify[Free[bool]] = key(
        False,
        "images stay on the device as one uint8 tensor; supports only crop_padding, flip, rotate, "
        "random_erase",
    )
    pipeline: ForClassify[Literal["exact", "fast"]] = key(
        "exact", "training images: PIL to the last bit, or faster resizes that round otherwise"
    )
    verify: Free[bool] = key(True, "require the official counts; false accepts a part")
    skip_unreadable: Free[CountOrZero] = key(
        0, "replace up to N unreadable training images (no others); one more aborts the run"
    )


Lanes = Annotated[int, Field(ge=1, le=2**16)]


class Batch(Section):
    size: Annotated[int, Field(ge=1, le=2**20)] = key(
        "images per optimizer step over all processes, with repeats"
    )
    lanes: Lanes = key("parts of a batch, each with its own mixup draw, drop path, Gram matrix")
    exact: bool = key(
        False, "sum gradients in the lanes' order: same bits on any number of processes; slow"
    )
    lanes_per_forward: ForClassify[Free[Lanes | Literal["auto"]]] = key(
        "auto", "lanes that share a forward pass, same up to rounding; auto: as many as fill a GPU"
    )

    @property
    def lane_size(self) -> int:
        return self.size // self.lanes


class Affine(Section):
    degrees: Annotated[float, Field(ge=0, le=180)] = key(0.0, "largest rotation either way")
    translate: Fraction = key(0.0, "largest shift as a fraction of the image")
    scale: Range[Annotated[float, Field(ge=0.01, le=100)]] = key(
        (1.0, 1.0), "range of the zoom factor"
    )


class Augment(Section):
    repeats: ForAll[Few] = key(1, "repeated augmentation: views of an image per epoch's order")
    crop_scale: Range[Annotated[float, Field(ge=1e-4, le=1)]] | None = key(
        None, "area range of a random resized crop; null: none"
    )
    crop_padding: Annotated[int, Field(ge=0, le=1024)] = key(
        0, "px added on each side before a random crop, without crop_scale"
    )
    crop_fill: Literal["reflect", "zero"] = key(
        "reflect", "what crop_padding adds: the image, or black"
    )
    crop_ratio: Range[Annotated[float, Field(ge=0.01, le=100)]] = key(
        (3 / 4, 4 / 3), "aspect range of a random resized crop"
    )
    interpolation: Literal["bicubic", "bilinear"] = key(
        "bicubic", "of resizes and affine; rotate, rand_augment and auto_augment have their own"
    )
    flip: ForAll[Probability] = key(0.0, "probability of a horizontal flip")
    rotate: Annotated[float, Field(ge=0, le=180)] = key(
        0.0, "degrees, largest random rotation either way: nearest pixel, black border"
    )
    affine: Affine | None = key(None, "random rotation, shift and zoom")
    rand_augment: str | None = key(None, "timm's RandAugment policy, as rand-m9-mstd0.5-inc1")
    auto_augment: Literal["cifar10"] | None = key(
        None, "AutoAugment's policy for that data set, with the operations of ViT-CIFAR"
    )
    three_augment: bool = key(False, "one of greyscale, solarize, blur on every image (DeiT-III)")
    color_jitter: Annotated[float, Field(ge=0, le=10)] = key(
        0.0, "strength for brightness, contrast and saturation"
    )
    random_erase: Probability = key(
        0.0, "probability that a box of 2 to 33 % of the image becomes normal noise"
    )


class Mix(Section):
    mixup: Strength = key(0.0, "alpha of mixup's Beta distribution; 0 is off")
    cutmix: Strength = key(0.0, "alpha of cutmix's Beta distribution; 0 is off")
    prob: Probability = key(1.0, "probability that a lane is mixed at all")
    switch_prob: Probability = key(0.5, "probability of cutmix when both are on")


class Loss(Section):
    name: Literal["bce", "ce"] = key("bce: binary, on (target > 0); ce: soft cross-entropy")
    smoothing: Fraction = key(0.0, "label smoothing, only for ce")
    class_weights: Literal["inverse"] | list[Factor] | None = key(
        None, "of each class in the loss, only for ce; inverse: to its number of training images"
    )


class FirstLayer(Section):
    lr: LearningRate = key("its peak learning rate, on the schedule of optim.lr")
    momentum: Fraction = key(0.9, "its momentum")


class Optim(Section):
    name: Literal[*OPTIMIZERS] = key("optimizer")
    lr: LearningRate = key("peak learning rate, not scaled by the batch size")
    weight_decay: Strength = key(
        0.0, "on tensors of 2 and more dimensions, except the model's skips"
    )
    decay_all: bool = key(False, "weight decay on every parameter, as torch's optimizers do")
    betas: Betas = key((0.9, 0.999), "all but sgd")
    eps: Epsilon = key(1e-8, "all but sgd")
    momentum: Fraction = key(0.9, "sgd")
    nesterov: bool = key(False, "sgd: Nesterov's momentum")
    first_layer: FirstLayer | None = key(None, "SGD for it, undecayed; null: as the others")
    clip_grad: Factor | None = key(None, "global gradient norm limit; null is off")
    bias_lr: Factor = key(1.0, "factor on the learning rate of biases")
    layer_decay: ForClassify[Annotated[float, Field(gt=0, le=1)] | None] = key(
        None, "factor on the learning rate per layer below the classifier; null: none"
    )


class Schedule(Section):
    name: Literal["cosine", "linear", "rex", "constant", "multistep"] = key(
        "cosine", "cosine, linear and rex fall from optim.lr to min_lr"
    )
    warmup_prefix: bool = key(
        False, "the fall begins after the warm-up; false: at step 0, over the complete run"
    )
    milestones: list[Epochs] = key([], "epochs after which multistep multiplies the learning rate")
    gamma: Annotated[float, Field(ge=1e-6, le=1)] = key(0.1, "multistep's factor")
    epochs: Epochs | None = key(None, "length of the run, or")
    steps: Count | None = key(None, "length of the run")
    warmup_epochs: EpochsOrZero | None = key(None, "linear warm-up, or")
    warmup_steps: CountOrZero | None = key(None, "linear warm-up")
    update: Literal["step", "epoch"] = key("step", "epoch: one lr each, one epoch late, as DeiT")
    warmup_lr: LearningRateOrZero = key(0.0, "learning rate at step 0 of the warm-up")
    min_lr: LearningRateOrZero = key(0.0, "where the fall ends")


class Precision(Section):
    autocast: Literal["bf16", "fp16", "auto"] | None = key(
        None, "null: float32; auto: bf16, on CUDA GPUs without it fp16"
    )
    compile: ForClassify[Free[bool]] = key(False, "torch.compile; minutes at the start")
    channels_last: ForClassify[Free[bool]] = key(
        False, "images and maps with channels last in memory: a GPU may be faster"
    )


class Ema(Section):
    decay: Fraction | None = key(None, "of the weights' moving average; null keeps none")


class Evaluate(Section):
    every_epochs: Epochs | None = key(None, "and always at the end, or")
    every_steps: Count | None = key(None, "and always at the end")
    batch_size: Free[Annotated[int, Field(ge=1, le=2**20)]] = key(
        256, "images per process and forward"
    )
    crop: ForClassify[Annotated[float, Field(ge=0.05, le=1)]] = key(
        1.0, "centre crop, share of the side"
    )
    pictures: ForDetect[Free[CountOrZero]] = key(0, "images drawn with detections")


class Save(Section):
    every_epochs: Epochs | None = key(None, "and always at the end, or")
    every_steps: Count | None = key(None, "and always at the end")
    keep: Count = key(2, "newest checkpoints kept")
    background: bool = key(False, "write while training continues; copies the state in memory")
    best: bool = key(False, "also keep the best evaluation's weights, as the validation chooses")
    milestones: Annotated[list[Epochs], Field(max_length=1000)] = key(
        [], "epochs after which the weights are also kept for good, without optimizer"
    )


class Log(Section):
    every_steps: Count = key(50, "steps between two log lines; each waits for the GPU")
    trackers: list[Literal["tensorboard", "wandb"]] = key([], "besides metrics.jsonl")
    peak_tflops: Factor | None = key(None, "of a device, for MFU; null: of known GPUs")
    profile: Count | None = key(None, "first of three steps that a profiler trace records")


class Faults(Section):
    timeout: Seconds = key(600.0, "seconds until a silent process is named and the run ends")
    skip_steps: list[Count] = key([], "logged steps whose batch and update are skipped")


class Expect(Section):
    top1: ForClassify[Percent | None] = key(None, "percent, final; null is unknown")
    map07: ForDetect[Percent | None] = key(None, "percent, final; task detect")
    source: str | None = key(None, "where that number comes from")
    cost: str | None = key(None, "time on named hardware")
    published: str | None = key(
        None, "published run to compare with; ENTRY/RESULT also gives the number above"
    )


class Recipe(Section):
    about: Free[str] = key("one line: what it is")
    task: Literal["classify", "detect"] = key("classify", "what the model learns to do")
    model: Model
    data: Data
    batch: Batch
    augment: ForClassify[Augment] = Augment()
    mix: ForClassify[Mix] = Mix()
    loss: ForClassify[Loss | None] = key(None, "task classify")
    detect: ForDetect[FasterRcnn | None] = key(None, "task detect")
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
    seed: Annotated[int, Field(ge=0, lt=2**63)] = key(0, "of every random draw of the run")

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
