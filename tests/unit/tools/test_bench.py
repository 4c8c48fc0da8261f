"""The benches' own arithmetic, and that the steps they compare train."""

import ast
from pathlib import Path

import pytest
import torch

from deit_tract.recipe.resolve import load_recipe
from deit_tract.recipe.source import ROOT


def imported(file: Path) -> set[str]:
    """The modules of tools/ that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {node.module for node in froms}
    names |= {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.startswith("tools")}


def test_no_bench_runs_the_script_a_second_time():
    folder = ROOT / "tools" / "benches"
    imports = {file.stem: imported(file) for file in folder.glob("*.py")}
    assert imports.pop("measure") == set()
    for name, others in imports.items():
        assert "tools.bench" not in others
        known = [other for other in imports if f"tools.benches.{other}" in others]
        assert not any(f"tools.benches.{name}" in imports[other] for other in known)


def test_every_bench_is_in_the_table():
    from tools.bench import BENCHES

    folder = ROOT / "tools" / "benches"
    assert {*BENCHES, "measure"} == {file.stem for file in folder.glob("*.py")}
    for name in BENCHES:
        tree = ast.parse((folder / f"{name}.py").read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body)


def test_the_published_times_stand_beside_their_recipes():
    from tools.benches.runtime import CASES, published_ratios

    ratios = published_ratios()
    assert ratios["cifar10_vit_100ep_tract"].startswith("1.0972x: CIFAR-10 ViT")  # +9.7 %
    for cases in CASES.values():
        assert ratios.keys() <= cases.keys()
        assert all(load_recipe(name).model.tract for name in cases)


@pytest.mark.parametrize(
    ("sizes", "operation", "launches"),
    [
        ([10] * 110, lambda t: torch._foreach_mul_(t, 2.0), 1),
        ([10] * 111, lambda t: torch._foreach_mul_(t, 2.0), 2),
        ([10] * 65, lambda t: torch._foreach_mul(t, 2.0), 2),
        ([65536 * 321], lambda t: torch._foreach_mul_(t, 2.0), 2),
        ([10] * 7, lambda t: torch._foreach_addcmul_(t, t, [t[0].sum()] * 7), 8),
        ([9], lambda t: t[0].view(3, 3), 0),
    ],
)
def test_launches_are_cut_as_cuda_cuts_them(sizes, operation, launches):
    from tools.benches.optimizer import Launches

    tensors = [torch.empty(size) for size in sizes]
    with Launches() as count:
        operation(tensors)
    assert count.launches == launches


@pytest.mark.parametrize("kind", ["D", "T", "ours", "ours, 4 lanes"])
def test_the_steps_compared_are_steps(kind, monkeypatch):
    from tools.benches import step as bench_step

    lanes = 4 if kind == "ours, 4 lanes" else 1
    overrides = [
        "data.name=synthetic",
        "data.image_size=32",
        "batch.size=8",
        f"batch.lanes={lanes}",
    ]
    overrides.append("augment.repeats=1")
    recipe = load_recipe(
        "vit_s_800ep_tract", [*overrides, "model.args.depth=1", "precision.autocast=bf16"]
    )
    seen, real = [], torch.nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        torch.nn.functional,
        "binary_cross_entropy_with_logits",
        lambda *args: seen.append(real(*args)) or seen[-1],
    )
    if kind.startswith("ours"):
        step = bench_step.ours(recipe, lanes)
    else:
        if kind == "D":
            pytest.importorskip("torch_tract")
        step = bench_step.theirs(recipe, torch.device("cpu"), kind == "D", upstream=kind == "D")
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    for _ in range(12):
        step(images, labels)
    assert seen[-1] < 0.9 * seen[0], "the same images again and again are learnt"


def test_training_from_files_is_compared_on_the_same_views(tmp_path):
    import numpy as np
    from PIL import Image

    from tools.benches import files as bench_files
    from tools.benches.data import Files

    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(path)
    images = Files(paths)
    images.labels = np.arange(12, dtype=np.int32)
    recipe = load_recipe(
        "vit_s_800ep_tract", ["data.name=synthetic", "batch.size=6", "batch.lanes=1"]
    )
    starts = bench_files.batches(recipe, images, 0, torch.device("cpu"))
    first = {
        name: [next(batches) for _ in range(3)]
        for name, batches in ((n, s()) for n, s in starts.items())
    }
    for ours, theirs in zip(first["ours"], first["D"], strict=True):
        assert torch.equal(ours[1], theirs[1]) and ours[0].shape == theirs[0].shape == (
            6,
            3,
            224,
            224,
        )
        assert ours[0].dtype == theirs[0].dtype == torch.float32
    assert torch.equal(first["ours, ready images"][2][0], first["ours, ready images"][0][0])

    steps = []
    bench_files.seconds(starts["D"], lambda *batch: steps.append(batch), 2, 3, torch.device("cpu"))
    assert len(steps) == 5


def test_what_is_left_to_a_gpu_is_a_whole_batch(tmp_path, monkeypatch):
    from PIL import Image

    from tools.benches import data as bench_data

    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(path)
    made, finish = [], bench_data.fast.FastTransform.finish
    monkeypatch.setattr(
        bench_data.fast.FastTransform,
        "finish",
        lambda *given: made.append(finish(*given)) or made[-1],
    )
    found = bench_data.on_device(
        load_recipe("vit_s_800ep"), paths, 2, torch.device("cpu"), batch=10
    )
    assert {tuple(images.shape) for images in made} == {(10, 3, 224, 224)} and len(
        found["samples_ms"]
    ) == 2
