"""The benches' own arithmetic, and that the steps they compare train."""

import pytest
import torch

from deit_tract import recipe as recipes


@pytest.mark.parametrize(
    ("sizes", "operation", "launches"),
    [([10] * 110, lambda t: torch._foreach_mul_(t, 2.0), 1), ([10] * 111, lambda t: torch._foreach_mul_(t, 2.0), 2),
     ([10] * 65, lambda t: torch._foreach_mul(t, 2.0), 2), ([65536 * 321], lambda t: torch._foreach_mul_(t, 2.0), 2),
     ([10] * 7, lambda t: torch._foreach_addcmul_(t, t, [t[0].sum()] * 7), 8), ([9], lambda t: t[0].view(3, 3), 0)],
)  # fmt: skip
def test_launches_are_cut_as_cuda_cuts_them(sizes, operation, launches):
    from tools.bench_optimizer import Launches

    tensors = [torch.empty(size) for size in sizes]
    with Launches() as count:
        operation(tensors)
    assert count.launches == launches


def test_our_lamb_launches_less_than_timms():
    from tools.bench_optimizer import counted, variants

    made = variants(recipes.load("vit_s_800ep"))
    ours = counted(made["ours"], "deit3_small_patch16_224")
    assert ours.operations < 30 and ours.launches < 100
    for name, make in made.items():
        if name != "ours":
            theirs = counted(make, "deit3_small_patch16_224")
            assert theirs.launches > ours.launches and theirs.operations > ours.operations


@pytest.mark.parametrize("kind", ["D", "T", "ours"])
def test_the_steps_compared_are_steps(kind, tmp_path, monkeypatch):
    from tools import bench_step

    overrides = ["data.name=synthetic", "data.image_size=32", "batch.size=8", "batch.lanes=1", "augment.repeats=1"]
    recipe = recipes.load("vit_s_800ep_tract", [*overrides, "model.args.depth=1", "precision.autocast=bf16"])
    seen, real = [], torch.nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        torch.nn.functional, "binary_cross_entropy_with_logits", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    if kind == "ours":
        step = bench_step.ours(recipe, tmp_path)
    else:
        if kind == "D":
            pytest.importorskip("torch_tract")
        step = bench_step.theirs(recipe, torch.device("cpu"), kind == "D", upstream=kind == "D")
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    for _ in range(12):
        step(images, labels)
    assert seen[-1] < 0.9 * seen[0], "the same images again and again are learnt"
