"""The plan: its counts against known figures and real tensors, its checks."""

import dataclasses

import pytest
import torch
from PIL import Image

from deit_tract.data.sets.load import load_splits
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.optim.build import build_optimizer
from deit_tract.plan import cost, plan
from deit_tract.plan.gpus import GPUS
from deit_tract.plan.plan import count_samples, hours, make_plan
from deit_tract.plan.text import show_plan
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.recipe.settings.recipe import Ema, Model, Save
from deit_tract.schedule.learning_rate import learning_rate
from tests.helpers.cli import call
from tests.helpers.detect import RECIPE
from tests.helpers.plan import mistakes
from tests.helpers.runs import short

DEIT = """
about: DeiT-III's shape
model: {{name: {name}, args: {{init_values: 1e-4}}, drop_path: 0.05, tract: 0.1}}
data: {{name: imagenet, image_size: {size}, classes: 1000, workers: 10}}
batch: {{size: 2048, lanes: 8}}
augment: {{repeats: 3}}
loss: {{name: bce}}
optim: {{name: lamb, lr: 4e-3, clip_grad: 1.0}}
schedule: {{epochs: 800, warmup_epochs: 5, warmup_lr: 1e-6, min_lr: 1e-5}}
precision: {{autocast: bf16}}
evaluate: {{every_epochs: 5}}
save: {{every_epochs: 1, keep: 2}}
"""


def deit(folder, name: str, size: int, *overrides: str) -> Recipe:
    (folder / "deit.yaml").write_text(DEIT.format(name=f"deit3_{name}_patch16_224", size=size))
    return load_recipe(str(folder / "deit.yaml"), overrides)


@pytest.mark.parametrize(
    ("name", "size", "parameters", "forward", "training", "gram"),
    [
        ("small", 224, 22_059_496, 9.198, 27.48, 0.2312),
        ("base", 192, 86_545_384, 25.58, 76.56, 0.1699),
    ],
)
def test_known_vits(tmp_path, name, size, parameters, forward, training, gram):
    made = make_plan(deit(tmp_path, name, size), tmp_path / "run")
    assert made.cost.parameters == parameters and made.cost.first_layer == "patch_embed.proj"
    flops = [made.cost.forward, made.cost.training, made.cost.tract]
    assert [value / 1e9 for value in flops] == pytest.approx([forward, training, gram], rel=5e-4)
    assert (made.stream.steps_per_epoch, made.steps) == (625, 500_000)
    assert (made.evaluations, made.saves) == (160, 800)
    assert made.shares == {1: [8], 2: [4, 4], 4: [2] * 4, 8: [1] * 8}


def test_training_flops_are_those_of_a_real_backward_pass():
    recipe = load_recipe("quickstart", ["model.tract=null"])
    net = build_model(recipe)
    images = torch.zeros(recipe.batch.lane_size, 1, 8, 8)
    draw_drop_path(
        [m for m in net.modules() if isinstance(m, DropPath)], len(images), 0, images.device
    )
    # unfused: the fused attention's backward pass forms the matrix again, which is not counted
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, attention:
        net(images).sum().backward()
    assert counter.get_total_flops() / len(images) == cost.measure(recipe, net).training


@pytest.mark.parametrize("autocast", ["null", "bf16"])
def test_activations_are_what_a_real_forward_saves(autocast):
    recipe = load_recipe("quickstart", [f"precision.autocast={autocast}", "model.drop_path=0.2"])
    net = build_model(recipe)
    counted = cost.measure(recipe, net).activations
    images = torch.zeros(recipe.batch.lane_size, 1, 8, 8)
    draw_drop_path(
        [m for m in net.modules() if isinstance(m, DropPath)], len(images), 0, images.device
    )
    own = {parameter.data_ptr() for parameter in net.parameters()}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    mode = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast != "null")
    with mode, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train()(images)
    assert counted == sum(storage.nbytes() for key, storage in saved.items() if key not in own)


def test_half_precision_and_lanes_decide_the_activations(tmp_path):
    def activations(*overrides):
        recipe = deit(tmp_path, "small", 224, "model.args.depth=3", *overrides)
        made = make_plan(recipe, tmp_path / "run", 8)
        return made.memory["activations"]

    half = activations()
    assert 1.5 * half < activations("precision.autocast=null") < 2 * half
    assert half == pytest.approx(2 * activations("batch.lanes=16"), rel=0.01)
    assert half == activations("precision.autocast=fp16")


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.name=lamb"],
        ["optim.name=adamw"],
        ["optim.name=sgd"],
        ["optim.name=sgd", "optim.momentum=0"],
    ],
)
def test_optimizer_state_is_that_of_the_real_one(overrides):
    recipe = load_recipe("quickstart", overrides)
    net = build_model(recipe)
    optimizer = build_optimizer(recipe.optim, net)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    values = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    state = sum(value.numel() * value.element_size() for value in values if value.ndim)
    assert cost.estimate_memory(recipe, cost.measure(recipe, net))["optimizer"] == state


def test_learning_rates_are_the_schedules(tmp_path):
    recipe = deit(tmp_path, "small", 224)
    rates = make_plan(recipe, tmp_path / "run").rates
    assert [epoch for epoch, _, _ in rates] == [0, 1, 2, 5, 6, 200, 400, 600, 799]
    assert [step for _, step, _ in rates] == [
        *(625 * e for e in (0, 1, 2, 5, 6, 200, 400, 600)),
        499_999,
    ]
    by_step = learning_rate(recipe, 625)
    assert all(rate == by_step(step) for _, step, rate in rates)
    late = make_plan(deit(tmp_path, "small", 224, "schedule.update=epoch"), tmp_path / "run").rates
    expected = [1e-6, 1e-6, 8.008e-4, 3.2002e-3, 3.9996e-3, None, 2.0128e-3, 5.9987e-4, 1.0062e-5]
    for (_, _, rate), published in zip(late, expected, strict=True):
        assert published is None or rate == pytest.approx(published, rel=1e-4)


def test_the_known_sizes_are_the_data_sets():
    data = load_recipe("quickstart").data
    assert count_samples(data) == tuple(len(split) for split in load_splits(data))


def test_without_the_images_the_rest_is_planned(tmp_path):
    made = make_plan(load_recipe("folder_vit_ti"), tmp_path / "run")
    assert made.samples is made.stream is made.steps is made.evaluations is None
    text = show_plan(made)
    assert (
        "unknown without --data-dir DIR" in text and f"{made.cost.parameters:,} parameters" in text
    )
    made = make_plan(load_recipe("folder_vit_ti", short(10)), tmp_path / "run")
    assert made.steps == 10 and "10 steps of 256 images" in show_plan(made)


def test_every_mistake_at_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    recipe = load_recipe(
        "quickstart",
        [
            "model.name=vgg11",
            "model.args={}",
            "model.class_token_std=0.02",
            "data.classes=7",
            "schedule.epochs=1000",
        ],
    )
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"args": {}})})
    lines = mistakes(recipe, tmp_path / "file" / "run")
    assert lines == [
        "model.class_token_std: vgg11 has no class token; set it to null",
        "model.drop_path: VGG has no drop path; set it to 0",
        next(
            line
            for line in lines
            if line.startswith("data.image_size: vgg11 does not take 16 images of 1 x 8 x 8")
        ),
        "data.classes: 7, but the data has 10; set data.classes=10",
        f"{tmp_path}/file/run: cannot be written ({tmp_path}/file is not a folder); "
        "choose another --output",
    ]


def test_the_disk_must_hold_the_best_weights_too(tmp_path, monkeypatch):
    times = {"evaluations": 10, "saves": 5}
    assert plan.most_bests(Save(keep=3), times) == 0
    assert plan.most_bests(Save(keep=3, best=True), times) == 3 + 2
    assert plan.most_bests(Save(keep=30, best=True), times) == 10
    seen = []
    monkeypatch.setattr(plan, "_check_folder", lambda *arguments: seen.append(arguments))
    settings = short(100, "evaluate.every_steps=10", "save.every_steps=20", "save.best=true")
    made = make_plan(load_recipe("quickstart", settings), tmp_path)
    weights = made.checkpoint - made.memory["optimizer"]
    assert seen == [(tmp_path, 2, made.checkpoint, 4 * weights)]


def test_a_detectors_photo_is_counted_as_it_is_padded():
    recipe = load_recipe(RECIPE, ["data.image_size=600", "detect.size_divisible=32"])
    assert cost.image_shape(load_recipe(RECIPE)) == (600, 800)
    assert cost.image_shape(recipe) == (608, 800)


def test_the_data_folder_is_looked_at_where_it_is_given(tmp_path):
    for name in ("train/a/1.png", "train/a/2.png", "train/b/3.png", "val/a/4.png", "val/b/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    settings = ["data.classes=2", "batch.size=2", "batch.lanes=1"]
    made = make_plan(load_recipe("folder_vit_ti", settings, str(tmp_path)), tmp_path / "run")
    assert made.samples == (3, 2) and made.stream.steps_per_epoch == 1
    recipe = load_recipe("folder_vit_ti", data_dir=str(tmp_path / "nowhere"))
    assert mistakes(recipe, tmp_path)[0].startswith(f"{tmp_path}/nowhere: no such folder; ")


def test_hours_scale_with_the_slowest_process(tmp_path):
    made = make_plan(
        deit(tmp_path, "small", 224, "batch.size=2100", "batch.lanes=6"), tmp_path / "run"
    )
    assert made.shares[4] == [2, 2, 1, 1] and 8 not in made.shares
    one, two, four = (sum(hours(made, 1000.0, n, 0.0)) for n in (1, 2, 4))
    assert one == pytest.approx(made.steps * 2100 / 1000 / 3600) and (two, four) == pytest.approx(
        (one / 2, one / 3)
    )
    evaluation = hours(made, 1000.0, 2, 0.5)[1]
    assert evaluation == pytest.approx(made.evaluations * 50_000 * 0.5 / 2 / 1000 / 3600)
    averaged = dataclasses.replace(
        made, recipe=made.recipe.model_copy(update={"ema": Ema(decay=0.9)})
    )
    assert hours(averaged, 1000.0, 2, 0.5)[1] == pytest.approx(2 * evaluation)


def test_a_gpus_speed_is_its_peak_a_launch_or_nothing(tmp_path):
    made = make_plan(deit(tmp_path, "small", 224), tmp_path / "run")
    a100, v100 = GPUS["A100 80GB"], GPUS["V100 32GB"]
    assert cost.speed(made.recipe, made.cost, a100) == pytest.approx(
        cost.MFU * 312e12 / made.cost.training
    )
    assert cost.speed(made.recipe, made.cost, v100) == 0.0
    half = deit(tmp_path, "small", 224, "precision.autocast=fp16")
    assert cost.speed(half, made.cost, v100) == pytest.approx(
        cost.MFU * 125e12 / made.cost.training
    )
    tiny = made.cost._replace(training=1)
    assert cost.speed(made.recipe, tiny, a100) == pytest.approx(256 / cost.LAUNCHES)


@pytest.mark.parametrize(
    ("name", "first"), [("resnet18", "conv1"), ("convnext_atto", "stem.0"), ("vgg11", "features.0")]
)
def test_other_models(tmp_path, name, first):
    recipe = deit(tmp_path, "small", 224, "model.tract_gram=batch", "batch.size=32")
    recipe = recipe.model_copy(update={"model": Model(name=name, tract=0.1, tract_gram="batch")})
    made = make_plan(recipe, tmp_path / "run")
    assert made.cost.first_layer == first and 2.5 < made.cost.training / made.cost.forward < 3
    plain = recipe.model_copy(update={"model": Model(name=name)})
    assert make_plan(plain, tmp_path / "run").cost[:5] == made.cost[:5]


def test_the_command(capsys, monkeypatch, tmp_path):
    arguments = ["--recipe", "quickstart", "--output", str(tmp_path / "run"), "--plan"]
    code, out, _ = call(capsys, monkeypatch, *arguments)
    assert code == 0 and not (tmp_path / "run").exists()
    assert (
        "152,458 parameters" in out and "2,000 steps" in out and "4 processes: 1 lane each" in out
    )
    code, out, lines = call(
        capsys, monkeypatch, *arguments, "--set", "data.classes=7", "--set", "model.name=nonsense"
    )
    assert (code, out, len(lines)) == (2, "", 2) and all(
        line.startswith("error: ") for line in lines
    )


@pytest.mark.parametrize(
    ("name", "pipeline", "rate"),
    [("vit_s_800ep", "exact", 184), ("vit_s_800ep", "fast", 405), ("vit_s_ft224", "fast", 258)],
)
def test_cores_are_counted_for_the_pipeline(tmp_path, name, pipeline, rate):
    recipe = load_recipe(name, [f"data.pipeline={pipeline}", "data.workers=10"])
    assert round(cost.core_rate(recipe)) == rate
    shown = show_plan(make_plan(recipe, tmp_path / "run"))
    assert f"cores and workers at {rate} images/s each" in shown
    [row] = [line.split() for line in shown.splitlines() if "10 workers" in line]
    assert row[-2:] == [f"{10 * cost.core_rate(recipe):,.0f}", "10"]
