"""Checkpoints: complete or not there, verified and pruned."""

import pytest

from deit_tract.common.errors import UserError
from deit_tract.common.files import write_atomic
from deit_tract.train import checkpoint
from tests.helpers.checkpoint import save


def test_what_was_saved_comes_back(tmp_path):
    path = save(tmp_path, 7)
    assert checkpoint.newest(tmp_path) == path and checkpoint.verify(path) is None
    weights, optimizer, progress = checkpoint.read(path)
    assert weights["model"]["w"][0, 0] == 7 and weights["ema"]["w"].tolist() == [7, 7]
    assert optimizer["optimizer"]["state"][0].tolist() == [1, 1, 1]
    assert progress["step"] == 7 and progress["best"] is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000007"], (
        "nothing temporary stays"
    )


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000015", "step_00000020"]


def test_no_checkpoint_is_none_and_leftovers_are_removed(tmp_path):
    (tmp_path / ".step_00000003.tmp").mkdir()
    assert checkpoint.newest(tmp_path) is None and list(tmp_path.iterdir()) == []
    assert checkpoint.newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json"]
)
@pytest.mark.parametrize("harm", ["cut", "empty", "flip", "gone"])
def test_a_broken_checkpoint_is_said_and_the_one_before_taken(tmp_path, name, harm):
    good, bad = save(tmp_path, 5), save(tmp_path, 10)
    path = bad / name
    content = path.read_bytes()
    middle = len(content) // 2
    harmed = {
        "cut": content[:middle],
        "empty": b"",
        "flip": content[:middle] + b"\xff\xff" + content[middle + 2 :],
    }
    path.unlink()
    if harm != "gone":
        path.write_bytes(harmed[harm])
    said = []
    assert checkpoint.newest(tmp_path, said.append) == good
    assert len(said) == 1 and "step_00000010 is not intact" in said[0]


def test_nothing_whole_is_an_error_not_a_new_start(tmp_path):
    (save(tmp_path, 5) / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="no checkpoint is intact"):
        checkpoint.newest(tmp_path, lambda line: None)


def test_a_broken_checkpoint_of_the_same_step_is_replaced(tmp_path):
    (save(tmp_path, 5) / "optimizer.pt").unlink()
    save(tmp_path, 5)
    assert checkpoint.verify(tmp_path / "step_00000005") is None


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "summary.json"
    write_atomic(path, "old")
    write_atomic(path, "new")
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="cannot be written"):
        write_atomic(path / "below_a_file.json", "x")
