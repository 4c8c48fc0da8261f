"""published.yaml against its sources."""

import csv
from statistics import fmean

import pytest
import yaml
from accelerate import Accelerator
from torchvision import models

from deit_tract.common.errors import UserError
from deit_tract.recipe import published
from deit_tract.recipe.catalogue import names
from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.settings.recipe import HEADLINES, Headline
from deit_tract.train.log import RunLog, read_metrics
from tests.helpers import ROOT

FIGURES = ROOT.parent / "shared" / "published" / "deit3_top1_by_epoch.csv"
KEYS = {
    **{
        f"pretrain_vit_{size}_800ep_{px}": f"vit_{size}_800ep"
        for size, px in zip("sblh", (224, 192, 192, 160), strict=True)
    },
    **{f"finetune_vit_{size}_20ep_224": f"vit_{size}_ft224_20ep" for size in "blh"},
    **{f"finetune_vit_{size}_20ep_384": f"vit_{size}_ft384_20ep" for size in "sbl"},
    **{f"in21k_vit_{size}_240ep_224": f"vit_{size}_in21k_240ep" for size in "sbl"},
    "in21k_vit_h_90ep_128": "vit_h_in21k_90ep",
    **{f"in21k_to_in1k_vit_{size}_50ep_224": f"vit_{size}_in21k_ft224_50ep" for size in "sblh"},
}
DATA = published.read()


@pytest.mark.skipif(not FIGURES.exists(), reason="needs the published figures beside the checkout")
def test_every_published_figure_is_there():
    lines = [line for line in FIGURES.read_text().splitlines() if not line.startswith("#")]
    theirs: dict[str, list] = {}
    for row in csv.DictReader(lines):
        theirs.setdefault(KEYS[row["run"]], []).append((float(row["epoch"]), float(row["top1"])))
    ours = {key: published.find(key) for key in DATA["runs"]}
    assert {
        key: list(zip(p.epochs, p.top1, strict=True)) for key, p in ours.items() if p.epochs
    } == theirs


def test_spot_values():
    small, fine = published.find("vit_s_800ep"), published.find("vit_b_ft224_20ep")
    assert (
        dict(zip(small.epochs, small.top1, strict=True))[100],
        small.epochs[-1],
        small.top1[-1],
    ) == (63.122, 800, 81.376)
    assert (fine.epochs, fine.top1[0], fine.top1[-1]) == ([0, 5, 10, 15, 20], 83.448, 83.802)
    assert "README_revenge.md" in small.source


@pytest.mark.parametrize(
    ("key", "metric", "numbers"),
    [
        ("vit_s_400ep", "top1", [80.4, 81.23, 81.50]),
        ("vit_s_400ep", "top5", [None, 95.70, 95.73]),
        ("vit_s_800ep", "top1", [81.4, 81.97, 82.18]),
        ("vit_s_800ep", "top5", [None, 95.90, 95.98]),
        ("vit_b_400ep", "top1", [83.5, 83.34, 83.58]),
        ("vit_b_400ep", "top5", [None, 96.44, 96.52]),
        ("resnet50_30ep", "top1", [71.96, 73.48]),
        ("resnet50_60ep", "top5", [92.36, 92.78]),
        ("resnet50_90ep", "top1", [75.70, 76.20, 76.130]),
        ("transfer_cifar10", "top1", [98.94, 99.02]),
        ("transfer_cifar100", "top1", [90.70, 90.85]),
        ("transfer_flowers102", "top1", [94.39, 95.58]),
        ("transfer_cars", "top1", [90.44, 91.07]),
        ("voc07_faster_rcnn", "map07", [65.9, 67.1]),
        ("voc07_faster_rcnn", "map07_sd", [0.5, 0.4]),
    ],
)
def test_tables_of_the_tract_paper(key, metric, numbers):
    assert [result.get(metric) for result in published.find(key).results] == numbers


def test_cifar100_tables_average_to_what_is_printed():
    """The paper prints the averages below its tables: a number copied wrongly would move them."""
    cifar = DATA["cifar100"]
    assert len(cifar["models"]) == 36
    for column, average in zip(
        zip(*cifar["models"].values(), strict=True), cifar["average"], strict=True
    ):
        assert fmean(column) == pytest.approx(average, abs=0.0055)


def test_the_text_on_the_36_models_follows_from_the_tables():
    """TrAct, Section 4.2: better in 33 models (top-1), 34 (top-5) and 31 (both)."""
    rows = list(DATA["cifar100"]["models"].values())
    gains = [(row[4] - row[0], row[6] - row[2]) for row in rows]
    better = [[gain > 1e-9 for gain in pair] for pair in gains]
    assert [sum(column) for column in zip(*better, strict=True)] == [33, 34]
    assert sum(map(all, better)) == 31
    assert [fmean(column) for column in zip(*gains, strict=True)] == pytest.approx(
        [0.49, 0.23], abs=0.005
    )


def test_the_resnets_anchors_are_torchvisions():
    for depth in (18, 34, 50):
        weights = getattr(models, f"ResNet{depth}_Weights").IMAGENET1K_V1
        theirs = weights.meta["_metrics"]["ImageNet-1K"]
        ours = published.find_result(f"resnet{depth}_90ep/torchvision")
        assert (ours["top1"], ours["top5"]) == (theirs["acc@1"], theirs["acc@5"])


def test_run_times_grow_as_the_text_says():
    grown = [
        max(times) / min(times) - 1
        for entry in DATA["run_times"]
        for times in entry.values()
        if len(times) == 2
    ]
    assert [100 * part for part in grown] == pytest.approx([9.7, 0.08, 0.25], abs=0.02)


def test_every_number_has_a_source():
    for key, entry in DATA["runs"].items():
        assert "results" in entry or "top1" in entry, key
        assert "top1" not in entry or entry["source"] in DATA["sources"], key
        for result in entry.get("results", {}).values():
            assert result["source"].partition(",")[0] in DATA["sources"], (key, result)


def test_no_key_stands_twice():
    """YAML readers keep the last of two equal keys without a word."""

    def walk(node):
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), sorted(keys)
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            for part in child if isinstance(child, tuple) else (child,):
                walk(part)

    walk(yaml.compose(published.FILE.read_text()))


def test_every_recipe_names_something_published():
    for name in names():
        key = load_recipe(name).expect.published
        if key is not None:
            published.find(key, name)


def test_nearest_label_within_the_tolerance():
    curve = published.find("vit_s_800ep")
    assert curve.near(100) == curve.near(99) == curve.near(101) == (100, 63.122)
    assert curve.near(102) is curve.near(801.5) is None
    assert published.find("vit_s_400ep").near(0) is None


def test_an_unknown_key_is_one_line():
    with pytest.raises(UserError) as caught:
        published.find("vit_s_80ep")
    assert (
        str(caught.value)
        == "expect.published: nothing is published under 'vit_s_80ep'; did you mean 'vit_s_800ep'?"
    )
    with pytest.raises(UserError, match="has the keys"):
        published.find("zzz")


def evaluation(step: int, top1: float) -> dict:
    """An evaluation of a run with ten steps an epoch."""
    return {"step": step, "epoch": step / 10, "top1": top1, "top5": 96.5}


def test_log_says_how_a_run_stands(tmp_path, capsys):
    recipe = load_recipe("quickstart", ["expect.published=vit_b_ft224_20ep"])
    log = RunLog(tmp_path, Accelerator(cpu=True), recipe, 0, 200, None)
    progress = {
        "step": 60,
        "epoch": 6.0,
        "loss": 1.0,
        "lr": 1e-3,
        "images_per_s": 100.0,
        "data_wait": 0.0,
    }
    for values in (evaluation(51, 83.5), evaluation(70, 83.75)):  # label 5 is near, then none
        log.evaluation(values)
        log.progress(progress | {"step": values["step"]})
    lines = [line[20:] for line in capsys.readouterr().out.splitlines()]  # without the time
    near, progress_near, far, progress_far = lines
    assert near == "step 51/200: top1 83.50 (published 83.71 at epoch 5, -0.21), top5 96.500"
    assert "epoch 6.00, top1 83.50 (published 83.71 at epoch 5, -0.21), " in progress_near
    assert far == "step 70/200: top1 83.750, top5 96.500" and "published" not in progress_far
    recorded = [record for record in read_metrics(tmp_path) if "top1" in record]
    assert [record.get("published_top1") for record in recorded] == [83.71, None]
    # a run that goes on from there says it again
    log = RunLog(tmp_path, Accelerator(cpu=True), recipe, 60, 200, None)
    log.progress(progress)
    assert "top1 83.50 (published 83.71 at epoch 5, -0.21), " in capsys.readouterr().out


def test_of_a_loss_the_lowest_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setitem(HEADLINES, "classify", Headline("val_loss", "loss", higher=False))
    recipe = load_recipe("quickstart")
    log = RunLog(tmp_path, Accelerator(cpu=True), recipe, 0, 200, {"val_loss": 2.0})
    assert log.is_best({"val_loss": 1.5}) and not log.is_best({"val_loss": 2.5})


def test_a_result_is_found_and_gives_the_expected_number(tmp_path):
    se = published.find_result("cifar100/SE-ResNet50/133 epochs, lambda 0.1")
    assert (se["top1"], se["top1_sd"], se["top5"]) == (78.32, 0.22, 94.47)
    assert published.find("vit_s_800ep/tract") == published.find("vit_s_800ep")
    with pytest.raises(UserError, match="did you mean 'vit_s_800ep/tract'"):
        published.find("vit_s_800ep/tracct")
    file = tmp_path / "mine.yaml"
    file.write_text("base: vit_s_800ep\nexpect: {published: transfer_cars/tract}\n")
    recipe = load_recipe(str(file))
    origin = "deit_tract/recipe/published.yaml (transfer_cars/tract)"
    assert recipe.expected == 91.07 and recipe._origins["expect", "top1"] == origin
    assert recipe.expect.source == "TrAct, Table 4: TrAct"
    assert load_recipe(str(file), ["expect.top1=null"]).expected is None
    file.write_text("base: vit_s_800ep\nexpect: {published: transfer_cars/trct}\n")
    with pytest.raises(
        UserError, match=r"mine.yaml:2: nothing is published under 'transfer_cars/t"
    ):
        load_recipe(str(file))


def test_the_end_of_a_curve_is_its_result():
    entry = published.find("vit_b_800ep")
    assert published.find_result("vit_b_800ep/deit3")["top1"] == entry.top1[-1] == 82.82


def test_a_number_reached_after_fine_tuning_is_not_that_of_the_pre_training():
    pretraining = load_recipe("vit_s_800ep_tract")
    assert pretraining.expected is None
    assert "then 50 epochs at 224 px: 82.18 %" in pretraining.expect.source
    assert load_recipe("vit_s_ft224_tract").expected == 82.18
    assert load_recipe("vit_s_800ep").expected == 81.4
    for entry in published.entries().values():
        for result in entry.get("results", {}).values():
            after = "epochs at 224" in result["what"] or "fine-tuning" in result["what"]
            assert bool(result.get("finetuned")) == after, result
