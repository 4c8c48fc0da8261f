"""LAMB's launches, counted by the bench."""

from deit_tract.recipe.resolve import load_recipe


def test_our_lamb_launches_less_than_timms():
    from tools.benches.optimizer import count_launches, variants

    made = variants(load_recipe("vit_s_800ep"))
    ours = count_launches(made["ours"], "deit3_small_patch16_224")
    assert ours.operations < 30 and ours.launches < 100
    for name, make in made.items():
        if name != "ours":
            theirs = count_launches(make, "deit3_small_patch16_224")
            assert theirs.launches > ours.launches and theirs.operations > ours.operations
