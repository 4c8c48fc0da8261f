"""A run folder cannot run code: neither its optimizer state nor its recipe."""

import hashlib
import json

import pytest

from deit_tract.common.errors import UserError
from deit_tract.train import checkpoint
from deit_tract.train.records import digest
from tests.helpers.runs import short, train
from tests.helpers.safety import FORMS, malicious


@pytest.mark.parametrize("form", FORMS)
def test_a_malicious_optimizer_state_is_refused_in_one_line(tmp_path, form):
    """Whole by its checksums, which whoever put it there would have made right too."""
    folder = tmp_path / "run"
    train(folder, *short(1))
    path = folder / "checkpoints" / "step_00000001"
    malicious(path / "optimizer.pt", tmp_path / "executed", form)
    data = (path / "optimizer.pt").read_bytes()
    progress = json.loads((path / "progress.json").read_text())
    del progress["sha256"]
    progress["files"]["optimizer.pt"] = [len(data), hashlib.sha256(data).hexdigest()]
    (path / "progress.json").write_text(json.dumps(progress | {"sha256": digest(progress)}))
    assert checkpoint.verify(path) is None
    with pytest.raises(UserError) as error:
        train(folder, *short(1))
    assert len(str(error.value).splitlines()) == 1 and "optimizer.pt" in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_recipe_in_a_runs_folder_runs_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "recipe.yaml").write_text(
        f"base: quickstart\nabout: !!python/object/apply:os.mkdir ['{tmp_path}/x']\n"
    )
    with pytest.raises(UserError, match="not a value of a recipe"):
        train(tmp_path)
    assert not (tmp_path / "x").exists()
