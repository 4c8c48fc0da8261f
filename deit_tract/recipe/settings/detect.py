"""The recipe's section for detection: simple-faster-rcnn-pytorch, each difference a switch."""

from typing import Annotated, Literal

from pydantic import Field

from deit_tract.recipe.settings.base import (
    Count,
    Fraction,
    NonNegative,
    Positive,
    Probability,
    Section,
)

Several = Annotated[list[Positive], Field(min_length=1)]


class FasterRcnn(Section):
    class_names: Annotated[list[str], Field(min_length=1)] = Field(
        description="of the annotations; labels 1, 2, ..."
    )
    train_split: str = Field("trainval", description="ImageSets/Main/NAME.txt that is trained on")
    val_split: str = Field("test", description="ImageSets/Main/NAME.txt that is evaluated on")
    max_size: Count = Field(
        1000, description="px, longer side at most; data.image_size is the shorter side"
    )
    size_divisible: Count = Field(
        1, description="px, sides are padded with zeros to a multiple; torchvision 32"
    )

    last_max_pool: bool = Field(
        False, description="keep VGG's last max-pool: stride 32 in place of 16"
    )
    predictor_init: Literal["normal", "torch"] = Field(
        "normal",
        description="normal: deviation 0.01 for classes, 0.001 for boxes; torch: nn.Linear's own",
    )
    dropout: Fraction = Field(0.0, description="after fc6 and fc7; py-faster-rcnn 0.5")

    anchor_sizes: Several = Field(
        [128, 256, 512], description="px, square root of an anchor's area"
    )
    anchor_ratios: Several = Field([0.5, 1.0, 2.0], description="height by width")
    anchor_offset: NonNegative = Field(
        8.0, description="px, of an anchor's centre in its cell; torchvision 0"
    )
    border_anchors: bool = Field(
        False, description="train on anchors that cross the image's border; torchvision true"
    )
    rpn_positive_iou: Probability = Field(0.7, description="an anchor from here on is positive")
    rpn_negative_iou: Probability = Field(0.3, description="an anchor below is negative")
    rpn_sample: Count = Field(256, description="anchors per image that the loss sees")
    rpn_positives: Probability = Field(0.5, description="of them at most")
    rpn_pre_nms_train: Count = Field(12000, description="best anchors before suppression, training")
    rpn_pre_nms_test: Count = Field(6000, description="the same, evaluation; torchvision 1000")
    rpn_post_nms_train: Count = Field(2000, description="proposals after suppression, training")
    rpn_post_nms_test: Count = Field(300, description="the same, evaluation; torchvision 1000")
    rpn_nms: Probability = Field(0.7, description="IoU above which a worse proposal is dropped")
    rpn_min_size: NonNegative = Field(
        16.0, description="px, smaller proposals are dropped; torchvision 0.001"
    )

    roi_op: Literal["pool", "align"] = Field("pool", description="RoIPool or RoIAlign, 7 x 7")
    roi_sample: Count = Field(
        128, description="proposals per image that the loss sees; torchvision 512"
    )
    roi_positives: Probability = Field(0.25, description="of them at most")
    roi_positive_iou: Probability = Field(
        0.5, description="a proposal from here on is positive, below negative"
    )
    roi_beta: Positive = Field(
        1.0, description="where the box loss turns from square to linear; torchvision 1/9"
    )

    score: Probability = Field(0.05, description="detections below are dropped")
    nms: Probability = Field(
        0.3, description="IoU above which a worse detection of a class is dropped; torchvision 0.5"
    )
    max_detections: Count | None = Field(
        None, description="per image; null: no limit; torchvision 100"
    )
