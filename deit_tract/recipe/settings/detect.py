"""The recipe's section for detection: simple-faster-rcnn-pytorch, each difference a switch."""

from typing import Annotated, Literal

from pydantic import Field

from deit_tract.recipe.settings.base import Fraction, Many, Pixels, Probability, Section, key

Length = Annotated[float, Field(ge=1, le=4096)]  # px
LengthOrZero = Annotated[float, Field(ge=0, le=4096)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]


class FasterRcnn(Section):
    class_names: Annotated[list[str], Field(min_length=1)] = key(
        "of the annotations; labels 1, 2, ..."
    )
    train_split: str = key("trainval", "ImageSets/Main/NAME.txt that is trained on")
    val_split: str = key("test", "ImageSets/Main/NAME.txt that is evaluated on")
    max_size: Pixels = key(1000, "px, longer side at most; data.image_size is the shorter side")
    size_divisible: Annotated[int, Field(ge=1, le=1024)] = key(
        1, "px, sides are padded with zeros to a multiple; torchvision 32"
    )

    last_max_pool: bool = key(False, "keep VGG's last max-pool: stride 32 in place of 16")
    predictor_init: Literal["normal", "torch"] = key(
        "normal", "normal: deviation 0.01 for classes, 0.001 for boxes; torch: nn.Linear's own"
    )
    dropout: Fraction = key(0.0, "after fc6 and fc7; py-faster-rcnn 0.5")

    anchor_sizes: Annotated[list[Length], Field(min_length=1, max_length=20)] = key(
        [128, 256, 512], "px, square root of an anchor's area"
    )
    anchor_ratios: Annotated[list[Ratio], Field(min_length=1, max_length=20)] = key(
        [0.5, 1.0, 2.0], "height by width"
    )
    anchor_offset: LengthOrZero = key(8.0, "px, of an anchor's centre in its cell; torchvision 0")
    border_anchors: bool = key(False, "train on anchors across the border; torchvision true")
    rpn_positive_iou: Probability = key(0.7, "an anchor from here on is positive")
    rpn_negative_iou: Probability = key(0.3, "an anchor below is negative")
    rpn_sample: Many = key(256, "anchors per image that the loss sees")
    rpn_positives: Probability = key(0.5, "of them at most")
    rpn_pre_nms_train: Many = key(12000, "best anchors before suppression, training")
    rpn_pre_nms_test: Many = key(6000, "the same, evaluation; torchvision 1000")
    rpn_post_nms_train: Many = key(2000, "proposals after suppression, training")
    rpn_post_nms_test: Many = key(300, "the same, evaluation; torchvision 1000")
    rpn_nms: Probability = key(0.7, "IoU above which a worse proposal is dropped")
    rpn_min_size: LengthOrZero = key(16.0, "px, smaller proposals are dropped; torchvision 0.001")

    roi_op: Literal["pool", "align"] = key("pool", "RoIPool or RoIAlign, 7 x 7")
    roi_sample: Many = key(128, "proposals per image that the loss sees; torchvision 512")
    roi_positives: Probability = key(0.25, "of them at most")
    roi_positive_iou: Probability = key(0.5, "a proposal from here on is positive, below negative")
    roi_beta: Annotated[float, Field(ge=1e-6, le=1000)] = key(
        1.0, "where the box loss turns from square to linear; torchvision 1/9"
    )

    score: Probability = key(0.05, "detections below are dropped")
    nms: Probability = key(
        0.3, "IoU from which a worse detection of a class is dropped; torchvision 0.5"
    )
    max_detections: Many | None = key(None, "per image; null: no limit; torchvision 100")
