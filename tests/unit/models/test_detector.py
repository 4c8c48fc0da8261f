"""The detector: the full VGG-16 in numbers, own parts against their rules, the rest against
torchvision.
"""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vgg16
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou

from deit_tract import tract
from deit_tract.common.errors import UserError, UserErrors
from deit_tract.models import detector
from deit_tract.models import weights as weight_files
from deit_tract.models.build import build_model
from deit_tract.models.weights import load_weights
from deit_tract.optim.build import build_optimizer, set_lr
from deit_tract.schedule.durations import total_steps
from deit_tract.schedule.learning_rate import learning_rate
from tests.helpers.detector import NARROW, load, narrow, small_vgg


def full(name: str) -> detector.Detector:
    """The full model without numbers."""
    with torch.device("meta"):
        return build_model(load(name=name))


def trainable(net: nn.Module) -> int:
    return sum(value.numel() for value in net.parameters() if value.requires_grad)


# ---- the full model ------------------------------------------------------------------------------


def test_parameters_keys_and_groups_of_both_arms_and_the_frozen_one():
    plain, with_tract, frozen = (
        full(f"voc2007_frcnn_vgg16{arm}") for arm in ("", "_tract", "_frozen")
    )
    vgg = 138_357_544 - 4_097_000  # without its last layer
    rpn = 512 * 512 * 9 + 512 + 513 * 9 * (1 + 4)
    assert (
        trainable(plain) == trainable(with_tract) == vgg + rpn + 4097 * 21 * (1 + 4) == 137_073_622
    )
    assert (
        trainable(frozen) == 136_813_462
        and sum(p.numel() for p in frozen.parameters()) == 137_073_622
    )
    assert plain.state_dict().keys() == with_tract.state_dict().keys() == frozen.state_dict().keys()
    assert [name for name, _ in tract.find(with_tract)] == ["backbone.0"] and not tract.find(plain)
    still = [name for name, value in frozen.named_parameters() if not value.requires_grad]
    assert still == [
        f"backbone.{place}.{part}" for place in (0, 2, 5, 7) for part in ("weight", "bias")
    ]
    settings = load().optim
    for net, tensors in ((plain, 20), (with_tract, 20), (frozen, 16)):
        set_lr(optimizer := build_optimizer(settings, net), 1e-3)
        biases, weights = sorted(optimizer.param_groups, key=lambda group: group["weight_decay"])
        assert (biases["lr"], biases["weight_decay"], biases["momentum"]) == (2e-3, 0.0, 0.9)
        assert (weights["lr"], weights["weight_decay"]) == (1e-3, 5e-4)
        assert len(biases["params"]) == len(weights["params"]) == tensors
        assert all(value.ndim == 1 for value in biases["params"]) and all(
            v.ndim > 1 for v in weights["params"]
        )


def test_stride_16_at_600_by_1000_and_32_with_the_last_max_pool():
    image = torch.empty(1, 3, 600, 1000, device="meta")
    net = full("voc2007_frcnn_vgg16")
    assert net.backbone(image).shape == (1, 512, 37, 62)
    with torch.device("meta"):
        deeper = build_model(load("detect.last_max_pool=true"))
    assert (
        deeper.backbone(image).shape == (1, 512, 18, 31)
        and deeper.roi_heads.box_roi_pool.scale == 1 / 32
    )
    anchors = build_model(load(*NARROW, "detect.anchor_sizes=[128, 256, 512]")).rpn.anchor_generator
    (all_of_them,) = anchors(
        ImageList(torch.empty(1, 3, 600, 1000), [(600, 1000)]), [torch.empty(1, 64, 37, 62)]
    )
    grid = all_of_them.reshape(37, 62, 9, 4)
    centres = (grid[..., :2] + grid[..., 2:]) / 2
    assert torch.equal(centres[3, 5, 0], torch.tensor([5 * 16 + 8.0, 3 * 16 + 8.0]))
    sides = grid[0, 0, :, 2:] - grid[0, 0, :, :2]
    expected = [
        (size / ratio**0.5, size * ratio**0.5) for ratio in (0.5, 1, 2) for size in (128, 256, 512)
    ]
    torch.testing.assert_close(sides, torch.tensor(expected))


def test_settings_reach_torchvisions_parts():
    net = full("voc2007_frcnn_vgg16")
    rpn, heads = net.rpn, net.roi_heads
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 12000, "testing": 6000},
        {"training": 2000, "testing": 300},
    )
    assert (rpn.nms_thresh, rpn.min_size) == (
        0.7,
        16,
    ) and rpn.fg_bg_sampler.batch_size_per_image == 256
    assert (heads.score_thresh, heads.nms_thresh, heads.box_coder.weights) == (
        0.05,
        0.3,
        (10, 10, 5, 5),
    )
    assert heads.fg_bg_sampler.batch_size_per_image == 128 and heads.detections_per_img > 300 * 20
    transform = net.transform
    assert (transform.min_size, transform.max_size, transform.size_divisible) == ((600,), 1000, 1)


def test_the_rate_falls_after_ten_of_fourteen_epochs():
    recipe = load()
    lr = learning_rate(recipe, 5011)
    assert total_steps(recipe.schedule, 5011) == 70_154
    assert [lr(step) for step in (0, 50_109, 50_110, 70_153)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4]
    )


# ---- beside torchvision --------------------------------------------------------------------------


@pytest.mark.parametrize("tract", ["null", "0.1"])
def test_with_torchvisions_choices_it_is_torchvisions_faster_rcnn(tract):
    """The same weights and draws: losses and detections to the bit, so all else is what the
    switches change.
    """
    choices = (
        "anchor_offset=0",
        "border_anchors=true",
        "roi_beta=0.1111111111111111",
        "roi_op=align",
        "nms=0.5",
        "anchor_ratios=[1]",
        "rpn_min_size=0.001",
        "score=0.03",
        "max_detections=100",
    )
    ours = narrow(f"model.tract={tract}", *(f"detect.{choice}" for choice in choices))
    backbone = nn.Sequential(*narrow().backbone)
    backbone.out_channels = 64
    theirs = FasterRCNN(
        backbone,
        None,
        128,
        200,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 64),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        box_head=type(ours.roi_heads.box_head)(64 * 49, 32).eval(),
        rpn_pre_nms_top_n_train=12000,
        rpn_post_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=6000,
        rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=128,
        box_nms_thresh=0.5,
        box_score_thresh=0.03,
        box_predictor=type(ours.roi_heads.box_predictor)(32, 21),
        size_divisible=1,
    )
    nn.init.normal_(ours.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    nn.init.normal_(ours.roi_heads.box_predictor.cls_score.weight, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    images = [torch.rand(3, 128, 160)]
    targets = [
        {
            "boxes": torch.tensor([[10.0, 10, 60, 70], [80, 30, 150, 120]]),
            "labels": torch.tensor([3, 20]),
        }
    ]
    losses = []
    for net in (ours, theirs):
        torch.manual_seed(0)
        losses.append(net.train()(images, targets))
    assert losses[0].keys() == losses[1].keys() and all(
        torch.equal(losses[0][key], losses[1][key]) for key in losses[0]
    )
    with torch.no_grad():
        found = [net.eval()(images)[0] for net in (ours, theirs)]
    assert len(found[0]["boxes"]) > 5 and all(
        torch.equal(found[0][key], found[1][key]) for key in found[0]
    )


# ---- own parts -----------------------------------------------------------------------------------


def assign(boxes, size=(128, 160), **settings):
    net = narrow(*(f"detect.{key}={value}" for key, value in settings.items()))
    rpn = net.rpn
    images = ImageList(torch.zeros(1, 3, *size), [size])
    anchors = rpn.anchor_generator(images, [torch.zeros(1, 64, size[0] // 16, size[1] // 16)])
    rpn._sizes = [size]
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    (labels,), (meet,) = rpn.assign_targets_to_anchors(anchors, [{"boxes": boxes}])
    return rpn, anchors[0], labels, meet, boxes


def test_anchors_across_the_border_are_not_in_the_loss():
    rpn, anchors, labels, meet, boxes = assign([[20, 20, 84, 84]])
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= 160) & (anchors[:, 3] <= 128)
    assert 0 < inside.sum() < len(inside) and (labels[~inside] == -1).all()
    iou = box_iou(boxes, anchors)[0]
    best = iou[inside].max()
    expected = torch.where(iou < 0.3, 0.0, torch.where((iou >= 0.7) | (iou == best), 1.0, -1.0))
    assert torch.equal(labels[inside], expected[inside]) and (labels == 1).any()
    assert rpn.box_coder.encode([meet], [anchors])[0].isfinite().all()
    *_, all_of_them, _, _ = assign([[20, 20, 84, 84]], border_anchors="true")
    assert torch.equal(all_of_them[inside], labels[inside]) and (all_of_them[~inside] == 0).any()


def test_an_object_that_no_inside_anchor_touches_makes_none_positive():
    """Of equally bad anchors torchvision, as the reference, would take all for positive."""
    _, _, labels, _, _ = assign([[0, 0, 1, 1]], anchor_sizes="[64]", anchor_ratios="[1]")
    inside = labels >= 0
    assert inside.any() and (labels[inside] == 0).all()


def test_an_image_smaller_than_every_anchor_trains_on_those_there_are():
    _, _, labels, _, _ = assign([[0, 0, 30, 30]], size=(32, 48), anchor_sizes="[64]")
    assert (labels == 1).any()


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_the_losses_of_the_heads_are_their_formulas(beta):
    scores, deltas = torch.randn(6, 4), torch.randn(6, 16)
    labels, wanted = torch.tensor([0, 2, 3, 0, 0, 1]), torch.randn(6, 4)
    losses = detector.box_losses(scores, deltas, labels, wanted, beta)
    total = 0.0
    for row, label in ((1, 2), (2, 3), (5, 1)):
        x = (deltas[row, 4 * label : 4 * label + 4] - wanted[row]).abs()
        total += torch.where(x < beta, x**2 / (2 * beta), x - beta / 2).sum()
    torch.testing.assert_close(losses["loss_box_reg"], total / 6)
    torch.testing.assert_close(losses["loss_classifier"], F.nll_loss(scores.log_softmax(1), labels))
    nothing = detector.box_losses(scores, deltas, torch.zeros(6, dtype=torch.int64), wanted, beta)
    assert nothing["loss_box_reg"] == 0


def test_roi_pool_takes_the_largest_value_of_each_cell():
    x = torch.randn(1, 2, 7, 7)
    pooled = narrow().roi_heads.box_roi_pool({"0": x}, [torch.tensor([[0.0, 0, 96, 96]])], None)
    torch.testing.assert_close(pooled, x)


def test_start_values():
    net = narrow("model.args.fc=256")
    predictor = net.roi_heads.box_predictor
    spread = [
        layer.weight.std().item()
        for layer in (predictor.cls_score, predictor.bbox_pred, net.rpn.head.bbox_pred)
    ]
    assert spread == pytest.approx([0.01, 0.001, 0.01], rel=0.1)
    assert not predictor.cls_score.bias.any() and not predictor.bbox_pred.bias.any()
    plain = narrow("detect.predictor_init=torch").roi_heads.box_predictor
    assert plain.cls_score.weight.std() > 0.03 and plain.cls_score.bias.any()


def test_dropout_is_in_training_alone():
    head = narrow("detect.dropout=0.5").roi_heads.box_head
    x = torch.rand(4, 64, 7, 7)
    assert (head.train()(x) == 0).float().mean() > (head.eval()(x) == 0).float().mean() + 0.1
    assert torch.equal(head(x), head(x)) and not torch.equal(head.train()(x), head(x))


@pytest.mark.parametrize("boxes", [[], [[10.0, 10, 60, 70]]])
def test_photos_without_objects_train_without_nan(boxes):
    net = narrow().train()
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }
    losses = net([torch.rand(3, 128, 150)], [target])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(value.grad.isfinite().all() for value in net.parameters())
    assert (losses["loss_box_reg"] > 0) == (losses["loss_rpn_box_reg"] > 0) == bool(boxes)


def test_under_autocast_boxes_stay_in_float32():
    net = narrow().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, deltas = net.rpn.head([net.backbone(torch.rand(1, 3, 128, 128))])
        found = net([torch.rand(3, 128, 150)])[0]
    assert scores[0].dtype == deltas[0].dtype == found["boxes"].dtype == torch.float32
    target = {"boxes": torch.tensor([[10.0, 10, 60, 70]]), "labels": torch.tensor([1])}
    with torch.autocast("cpu", torch.bfloat16):
        losses = net.train()([torch.rand(3, 128, 150)], [target])
    sum(losses.values()).backward()
    assert net.backbone[0].weight.grad.isfinite().all()


# ---- TrAct ---------------------------------------------------------------------------------------


def test_tract_changes_the_first_weights_gradient_alone():
    """Against equation 12 with its matrices written out, on one photo; bias and all other gradients
    stay.
    """
    image, lam = torch.rand(3, 128, 150), 0.1
    target = {"boxes": torch.tensor([[10.0, 10, 60, 70]]), "labels": torch.tensor([1])}
    grads = {}
    for name, value in (("plain", "null"), ("tract", lam)):
        net = narrow(f"model.tract={value}").train()
        torch.manual_seed(0)
        sum(net([image], [target]).values()).backward()
        grads[name] = {key: parameter.grad for key, parameter in net.named_parameters()}
    changed = [
        key for key in grads["plain"] if not torch.equal(grads["plain"][key], grads["tract"][key])
    ]
    assert changed == ["backbone.0.weight"]
    seen, _ = net.transform([image])
    rows = F.unfold(seen.tensors.double(), 3, padding=1)[0].T
    gram = rows.T @ rows / len(rows) + lam * torch.eye(27, dtype=torch.double)
    expected = torch.linalg.solve(gram, grads["plain"]["backbone.0.weight"].flatten(1).double().T).T
    ours = grads["tract"]["backbone.0.weight"].flatten(1).double()
    assert (ours - expected).norm() / expected.norm() < 1e-4


def test_tract_on_a_frozen_layer_is_refused_in_one_line():
    with pytest.raises(UserErrors) as error:
        load("model.tract=0.1", name="voc2007_frcnn_vgg16_frozen")
    line = "--set model.tract=0.1: backbone.0 is frozen by model.unfreeze_from 4: "
    line += "TrAct would change nothing; "
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_the_names_are_those_of_torchvisions_vgg16():
    with torch.device("meta"):
        theirs = vgg16()
    ours = full("voc2007_frcnn_vgg16").state_dict()
    shapes = {
        key: value.shape
        for key, value in theirs.state_dict().items()
        if not key.startswith("classifier.6")
    }
    renamed = {"features.": "backbone.", "classifier.0": "roi_heads.box_head.fc6"}
    renamed["classifier.3"] = "roi_heads.box_head.fc7"
    for key, shape in shapes.items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        assert ours[key].shape == shape
    assert (
        len(shapes)
        == 30
        == sum(key.startswith(("backbone.", "roi_heads.box_head.")) for key in ours)
    )


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_vgg16s_weights_fill_backbone_and_head(tmp_path, ending):
    state, path, net = small_vgg(), tmp_path / f"vgg16{ending}", narrow()
    save = torch.save if ending == ".pth" else save_file
    save(state, path)
    fresh = net.roi_heads.box_predictor.cls_score.weight.clone()
    load_weights(net, str(path))
    ours = net.state_dict()
    assert torch.equal(ours["backbone.28.weight"], state["features.28.weight"])
    assert torch.equal(ours["roi_heads.box_head.fc6.weight"], state["classifier.0.weight"])
    assert torch.equal(ours["roi_heads.box_head.fc7.bias"], state["classifier.3.bias"])
    assert torch.equal(ours["roi_heads.box_predictor.cls_score.weight"], fresh)


def test_timms_vgg16_has_its_linear_layers_as_convolutions(tmp_path):
    state = small_vgg()
    timms = {key: value for key, value in state.items() if key.startswith("features.")}
    timms |= {"pre_logits.fc1.weight": state["classifier.0.weight"].reshape(32, 64, 7, 7)}
    timms |= {
        "pre_logits.fc1.bias": state["classifier.0.bias"],
        "pre_logits.fc2.bias": state["classifier.3.bias"],
    }
    timms |= {"pre_logits.fc2.weight": state["classifier.3.weight"].reshape(32, 32, 1, 1)}
    timms |= {"head.fc.weight": torch.randn(1000, 32), "head.fc.bias": torch.randn(1000)}
    nets = narrow(), narrow()
    for net, weights, name in zip(nets, (state, timms), "ab", strict=True):
        torch.save(weights, tmp_path / name)
        load_weights(net, str(tmp_path / name))
    ours, theirs = (net.state_dict() for net in nets)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_detectors_own_weights_are_loaded_whole(tmp_path):
    torch.manual_seed(0)
    source, net = narrow("seed=1"), narrow("model.tract=0.1")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(net, str(tmp_path / "model.safetensors"))
    assert all(
        torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.5.bias"), "lacks backbone.5.bias"),
        (
            lambda state: state.update({"features.31.weight": torch.zeros(1)}),
            "has unexpected backbone.31.weight",
        ),
        (lambda state: state.update(small_vgg(16)), "has other shapes for backbone.0.bias"),
        (
            lambda state: state["classifier.3.weight"].fill_(float("nan")),
            "classifier.3.weight contains NaN",
        ),
    ],
)
def test_other_weights_are_refused(tmp_path, change, message):
    state = small_vgg()
    change(state)
    torch.save(state, tmp_path / "vgg16.pth")
    with pytest.raises(UserError, match=message):
        load_weights(narrow(), str(tmp_path / "vgg16.pth"))


def test_torchvisions_hub_is_asked_by_name(monkeypatch):
    state, asked = small_vgg(), []

    class Weights:
        def get_state_dict(self, **options):
            return state

    monkeypatch.setattr(weight_files, "get_weight", lambda name: asked.append(name) or Weights())
    net = narrow()
    load_weights(net, "torchvision:VGG16_Weights.IMAGENET1K_V1")
    assert asked == ["VGG16_Weights.IMAGENET1K_V1"]
    assert torch.equal(net.backbone[0].weight, state["features.0.weight"])
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(net, "torchvision:VGG16_Weights.NOTHING")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.args.depth=3", "fasterrcnn_vgg16 has no 'depth'"),
        ("model.args.width=0", "0 is not a number of channels"),
    ],
)
def test_arguments_it_does_not_have(setting, message):
    with pytest.raises(UserError, match=message):
        narrow(setting)
