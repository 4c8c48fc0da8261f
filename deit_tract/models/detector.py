"""Faster R-CNN with VGG-16 out of torchvision's detection parts, and own code for what they lack.

The reference is simple-faster-rcnn-pytorch; docs/detection.md compares the two. In the weights'
keys `backbone.N` is VGG's `features.N`, `roi_heads.box_head.fc6` and `fc7` its first two linear
layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou, roi_align, roi_pool

from deit_tract.common.errors import UserError
from deit_tract.recipe.settings.detect import FasterRcnn
from deit_tract.recipe.settings.recipe import Recipe

ROI = 7  # cells of a pooled proposal, either way


class Detector(GeneralizedRCNN):
    """In training mode (images, targets) to a dict of losses, else images to detections.

    images: list of (3, h, w) in [0, 1], any sizes; normalised and resized here, several padded to
        the largest. Detections are in the pixels of the given image.
    targets: list of {"boxes": (n, 4) half-open x0 y0 x1 y1, "labels": (n,) from 1}; n may be 0.
    """

    pretrained_cfg = {"first_conv": "backbone.0"}  # where TrAct goes


def build_detector(recipe: Recipe) -> Detector:
    """Build the recipe's detector. Raises UserError on arguments it does not have."""
    model, data, detect = recipe.model, recipe.data, recipe.detect
    width, fc = _arguments(model.args)
    backbone = _build_backbone(width, detect.last_max_pool, model.unfreeze_from)
    stride = 32 if detect.last_max_pool else 16
    channels = 8 * width
    shape = (data.image_size, detect.max_size, data.mean, data.std)
    transform = GeneralizedRCNNTransform(*shape, size_divisible=detect.size_divisible)
    rpn = _build_rpn(detect, channels, stride)
    heads = _build_heads(detect, channels, fc, data.classes, stride)
    return Detector(backbone, rpn, heads, transform)


def _arguments(args: dict) -> tuple[int, int]:
    """Return the channels of VGG's first block and of its linear layers: 64 and 4096."""
    values = {"width": 64, "fc": 4096} | args
    for name, value in values.items():
        if name not in ("width", "fc"):
            what = f"fasterrcnn_vgg16 has no '{name}'"
            raise UserError("model.args", what, "it has width and fc")
        if not isinstance(value, int) or value < 1:
            what = f"{value!r} is not a number of channels"
            raise UserError(f"model.args.{name}", what, "give a whole number")
    return values["width"], values["fc"]


def _build_backbone(width: int, last_max_pool: bool, unfreeze_from: int) -> nn.Sequential:
    """Build VGG-16's convolutions, without the last max-pool unless asked for.

    He's initialisation, as torchvision's VGG.
    """
    plan = [value if value == "M" else value * width // 64 for value in vgg.cfgs["D"]]
    backbone = vgg.make_layers(plan if last_max_pool else plan[:-1])
    convolutions = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    for layer in convolutions[:unfreeze_from]:
        layer.requires_grad_(False)
    return backbone


# ---- proposals ---------------------------------------------------------------------------------


def _build_rpn(detect: FasterRcnn, channels: int, stride: int) -> "Rpn":
    anchors = Anchors(detect.anchor_sizes, detect.anchor_ratios, stride, detect.anchor_offset)
    pre = {"training": detect.rpn_pre_nms_train, "testing": detect.rpn_pre_nms_test}
    post = {"training": detect.rpn_post_nms_train, "testing": detect.rpn_post_nms_test}
    iou = (detect.rpn_positive_iou, detect.rpn_negative_iou)
    sample = (detect.rpn_sample, detect.rpn_positives)
    head = Float32RPNHead(channels, anchors.num_anchors_per_location()[0])  # N(0, 0.01), biases 0
    rpn = Rpn(anchors, head, *iou, *sample, pre, post, detect.rpn_nms)
    rpn.min_size = detect.rpn_min_size
    rpn.border_anchors = detect.border_anchors
    return rpn


class Anchors(AnchorGenerator):
    """torchvision's anchors, not rounded, centred in their cell, at the backbone's stride.

    torchvision divides image by feature map, which gives 17 px and more for many sides below 256.
    """

    def __init__(self, sizes: list[float], ratios: list[float], stride: int, offset: float):
        self.stride, self.offset = stride, offset
        super().__init__((tuple(sizes),), (tuple(ratios),))

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device="cpu") -> Tensor:
        """Return (sizes * ratios, 4) anchors of the cell at the origin, ratio by ratio."""
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        high = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        width, height = (sizes / high[:, None]).flatten(), (sizes * high[:, None]).flatten()
        return torch.stack([-width, -height, width, height], 1) / 2 + self.offset

    def grid_anchors(self, grid_sizes, strides) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [[self.stride, self.stride] for _ in strides])


class Float32RPNHead(RPNHead):
    """Returns scores and boxes in float32: in half precision a box may be a pixel or more off."""

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(features)
        return [x.float() for x in scores], [x.float() for x in deltas]


class Rpn(RegionProposalNetwork):
    """torchvision's; unless `border_anchors`, anchors across the border are not in the loss."""

    border_anchors = False

    def forward(self, images, features, targets=None):
        self._sizes = images.image_sizes
        return super().forward(images, features, targets)

    def assign_targets_to_anchors(self, anchors, targets):
        """Return every anchor's label, 1, 0 or -1 (not in the loss), and its target box."""
        if self.border_anchors:
            return super().assign_targets_to_anchors(anchors, targets)
        pairs = [self._assign(*image) for image in zip(anchors, targets, self._sizes, strict=True)]
        return [labels for labels, _ in pairs], [boxes for _, boxes in pairs]

    def _assign(
        self, anchors: Tensor, target: dict[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        limit = anchors.new_tensor(size[::-1])  # width, height
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] <= limit).all(1)
        if not inside.any():  # the image is smaller than every anchor: no anchor, no loss
            inside = torch.ones_like(inside)
        boxes = target["boxes"]
        if len(boxes):
            # the best anchor of a box is positive; if none touches it, all would be equally good
            boxes = boxes[box_iou(boxes, anchors[inside]).amax(1) > 0]
        (found,), (matched,) = super().assign_targets_to_anchors(
            [anchors[inside]], [{"boxes": boxes}]
        )
        labels = torch.full((len(anchors),), -1.0, device=anchors.device)
        labels[inside] = found
        goals = anchors.clone()  # an anchor that does not count is its own: its offsets are finite
        goals[inside] = matched.to(goals.dtype)
        return labels, goals


# ---- classes and boxes -------------------------------------------------------------------------


def _build_heads(detect: FasterRcnn, channels: int, fc: int, classes: int, stride: int) -> "Heads":
    head = BoxHead(channels * ROI**2, fc)
    head.dropout = detect.dropout
    for layer in (head.fc6, head.fc7):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    predictor = FastRCNNPredictor(fc, classes + 1)
    if detect.predictor_init == "normal":
        for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
    iou = (detect.roi_positive_iou, detect.roi_positive_iou)
    sample = (detect.roi_sample, detect.roi_positives)
    most = 2**31 if detect.max_detections is None else detect.max_detections
    # torchvision's 10, 10, 5, 5 are the reference's deviations 0.1, 0.1, 0.2, 0.2
    weights = None
    found = (detect.score, detect.nms, most)
    heads = Heads(RoIs(detect.roi_op, stride), head, predictor, *iou, *sample, weights, *found)
    heads.beta = detect.roi_beta
    return heads


class RoIs(nn.Module):
    """RoIPool or RoIAlign on the one feature map, in float32: (proposals, channels, 7, 7)."""

    def __init__(self, op: str, stride: int):
        super().__init__()
        self.op, self.scale = op, 1 / stride

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes) -> Tensor:
        x = features["0"].float()
        if self.op == "pool":
            return roi_pool(x, proposals, ROI, self.scale)
        return roi_align(x, proposals, ROI, self.scale, sampling_ratio=2)


class BoxHead(TwoMLPHead):
    """fc6 and fc7, each with the recipe's dropout."""

    dropout = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x


class Heads(RoIHeads):
    """torchvision's without masks and keypoints, with the box loss of the recipe's `roi_beta`."""

    beta = 1.0

    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            proposals, _, labels, wanted = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        scores, deltas = (x.float() for x in self.box_predictor(self.box_head(pooled)))
        if self.training:
            return [], box_losses(scores, deltas, torch.cat(labels), torch.cat(wanted), self.beta)
        found = self.postprocess_detections(scores, deltas, proposals, image_shapes)
        names = ("boxes", "scores", "labels")
        return [dict(zip(names, image, strict=True)) for image in zip(*found, strict=True)], {}


def box_losses(
    scores: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor, beta: float
) -> dict[str, Tensor]:
    """Cross-entropy of the classes, smooth L1 of the positives' class: means over all proposals.

    scores: (n, 1 + classes); deltas: (n, 4 * (1 + classes)); labels: (n,), 0 is background;
    wanted: (n, 4).
    """
    positive = torch.where(labels > 0)[0]
    own = deltas.reshape(len(labels), -1, 4)[positive, labels[positive]]
    box = F.smooth_l1_loss(own, wanted[positive], beta=beta, reduction="sum") / len(labels)
    return {"loss_classifier": F.cross_entropy(scores, labels), "loss_box_reg": box}


class TraceableDetector(nn.Module):
    """A detector's training forward on shapes, which needs no proposals: for what `cost` counts.

    images: (b, 3, h, w), already resized.
    """

    pretrained_cfg = Detector.pretrained_cfg

    def __init__(self, net: Detector):
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = net.backbone, net.rpn, net.roi_heads

    def forward(self, images: Tensor) -> tuple:
        features, heads = self.backbone(images), self.roi_heads
        rois = len(images) * heads.fg_bg_sampler.batch_size_per_image
        pooled = features.new_zeros(rois, features.shape[1], ROI, ROI, dtype=torch.float32)
        return self.rpn.head([features]), heads.box_predictor(heads.box_head(pooled))
