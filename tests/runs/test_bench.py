"""The benches' own arithmetic, and that the steps they compare train."""

from deit_tract.recipe.resolve import load_recipe


def test_our_lamb_launches_less_than_timms():
    from tools.bench_optimizer import counted, variants

    made = variants(load_recipe("vit_s_800ep"))
    ours = counted(made["ours"], "deit3_small_patch16_224")
    assert ours.operations < 30 and ours.launches < 100
    for name, make in made.items():
        if name != "ours":
            theirs = counted(make, "deit3_small_patch16_224")
            assert theirs.launches > ours.launches and theirs.operations > ours.operations
