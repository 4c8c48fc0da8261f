"""Classification: losses against their formulas, draws from the lane's seed, counts of right
answers.
"""

import pytest
import torch
import torch.nn.functional as F

from deit_tract.common.errors import UserError
from deit_tract.data.sets.load import load_splits
from deit_tract.evaluators import build_evaluators
from deit_tract.recipe.resolve import load_recipe
from deit_tract.tasks.classify import Classify, SoftCrossEntropy, class_weights, thresholded_bce


def task(*overrides: str) -> Classify:
    recipe = load_recipe("quickstart", overrides)
    return Classify(recipe, load_splits(recipe.data).train)


def batch(size: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(size, 1, 8, 8, generator=generator),
        "label": torch.randint(10, (size,), generator=generator),
    }


def test_bce_counts_every_positive_target_as_full():
    logits, targets = torch.randn(6, 5), torch.tensor([[0.7, 0.3, 0, 0, 0]] * 6)
    p = logits.sigmoid()
    expected = -(torch.cat([p[:, :2], 1 - p[:, 2:]], 1)).log().mean()
    torch.testing.assert_close(thresholded_bce(logits, targets), expected)


def test_a_mixed_image_has_at_most_two_positives_and_starts_at_the_expected_loss():
    classify = task("mix.prob=1.0", "mix.cutmix=1.0")
    seen = []
    classify.criterion = lambda logits, targets: (
        seen.append(targets) or thresholded_bce(logits, targets)
    )
    classify.model.train()
    for seed in range(30):
        value = classify.loss(classify.model, [batch()], [seed])["loss"].item()
        assert abs(value - 0.6931) < 0.05, "an untrained model is undecided about every class"
    positives = torch.cat(seen).gt(0).sum(1)
    assert positives.min() == 1 and positives.max() == 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_cross_entropy_with_smoothing(smoothing):
    classify = task(
        "loss.name=ce", f"loss.smoothing={smoothing}", "mix.prob=0.0", "model.drop_path=0"
    )
    images, labels = batch().values()
    targets = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
    expected = -(targets * classify.model(images).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(classify.loss(classify.model, [batch()], [0])["loss"], expected)


def test_the_lanes_seed_decides_all_its_draws():
    classify = task(
        "mix.prob=1.0", "model.args.proj_drop_rate=0.2"
    )  # with dropout that the model draws itself
    classify.model.train()
    values = []
    for seed in (1, 2, 1):
        torch.rand(7)
        values.append(classify.loss(classify.model, [batch()], [seed])["loss"].item())
    assert values[0] == values[2] != values[1]


def test_evaluation_counts_and_summarises():
    recipe = load_recipe("quickstart")
    [evaluator] = build_evaluators(recipe, load_splits(recipe.data).val)
    images, labels = batch(40).values()
    model = task().model.eval()
    sums = evaluator.measure(model, {"image": images, "label": labels})
    logits = model(images)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert (sums["count"], sums["top1"], sums["top5"]) == (40, (ranks < 1).sum(), (ranks < 5).sum())
    metrics = evaluator.summarize({"count": 40, "top1": 10, "top5": 20, "loss": 80.0})
    assert metrics == {"top1": 25.0, "top5": 50.0, "val_loss": 2.0}


def test_class_weights_scale_each_class_in_the_loss():
    weights = [0.5, 2.0, 1.0]
    logits = torch.randn(6, 3, dtype=torch.float64)
    targets = torch.rand(6, 3, dtype=torch.float64).softmax(1)
    criterion = SoftCrossEntropy(0.1, torch.tensor(weights, dtype=torch.float64))
    smooth = 0.9 * targets + 0.1 / 3
    chance = logits.softmax(1).log()
    expected = sum(
        -weights[c] * smooth[i, c] * chance[i, c] for i in range(6) for c in range(3)
    ) / len(logits)
    torch.testing.assert_close(criterion(logits, targets), expected)


def test_inverse_class_weights_make_classes_count_alike():
    train = load_splits(load_recipe("quickstart").data).train
    weights = class_weights("inverse", train)
    counts = torch.bincount(torch.from_numpy(train.labels))
    torch.testing.assert_close(weights * counts, torch.full((10,), len(train) / 10.0))
    train.labels = train.labels % 9
    with pytest.raises(UserError, match="no training image of 9"):
        class_weights("inverse", train)
