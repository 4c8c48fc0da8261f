"""What keys and optimizers tell about themselves."""

from deit_tract.optim.build import BUILDERS
from deit_tract.recipe.describe import FREE_KEYS, schema
from deit_tract.recipe.optimizers import OPTIMIZERS
from deit_tract.recipe.settings.base import notes
from deit_tract.recipe.settings.recipe import Recipe

# what runs written so far were compared by: only these may differ when one resumes
FREE = """
about batch.lanes_per_forward data.dir data.resident data.skip_unreadable data.verify data.workers
evaluate.batch_size evaluate.pictures model.checkpointing precision.compile
precision.channels_last
expect.cost expect.map07 expect.published expect.source expect.top1
faults.skip_steps faults.timeout
log.every_steps log.peak_tflops log.profile log.trackers
save.background save.best save.every_epochs save.every_steps save.keep save.milestones
"""
CLASSIFY = """
augment.affine augment.auto_augment augment.color_jitter augment.crop_fill augment.crop_padding
augment.crop_ratio augment.crop_scale augment.interpolation augment.rand_augment
augment.random_erase augment.rotate augment.three_augment batch.lanes_per_forward data.pipeline
data.resident data.share evaluate.crop expect.top1 loss mix.cutmix mix.mixup mix.prob
mix.switch_prob model.checkpointing model.class_token_std model.drop_path model.drop_path_mode
model.drop_path_rule model.new_head model.train optim.layer_decay precision.channels_last
precision.compile
"""
DETECT = "detect evaluate.pictures expect.map07 model.unfreeze_from"


def of_task(task: str) -> list[str]:
    return sorted(".".join(path) for path, note in notes(Recipe) if note.task == task)


def test_the_keys_that_may_change_when_a_run_resumes():
    assert sorted(".".join(path) for path in FREE_KEYS) == sorted(FREE.split())


def test_the_keys_of_one_task():
    assert of_task("classify") == CLASSIFY.split()
    assert of_task("detect") == DETECT.split()


def test_notes_do_not_reach_the_schema():
    assert "Note" not in str(schema()) and "'free'" not in str(schema())


def test_every_optimizer_has_its_row_and_its_builder():
    assert list(OPTIMIZERS) == list(BUILDERS)
