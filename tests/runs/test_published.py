"""Training compared with published.yaml while it goes."""

import json

import pytest

from deit_tract.common.errors import UserError
from tests.helpers.runs import short, train


def test_training_is_held_against_the_curve_of_its_recipe(tmp_path):
    last = train(tmp_path, *short(1, "expect.published=vit_b_ft224_20ep"))[-1]
    assert last["published_top1"] == 83.448
    assert json.loads((tmp_path / "summary.json").read_text())["final"] == last


def test_training_says_nothing_where_nothing_is_published(tmp_path, capsys):
    records = train(tmp_path / "a", *short(2, "evaluate.every_steps=1"))
    assert not any("published_top1" in record for record in records)
    assert "published" not in capsys.readouterr().out


def test_training_refuses_an_unknown_key(tmp_path):
    with pytest.raises(UserError, match="vit_b_ft224_20ep"):
        train(tmp_path, *short(1, "expect.published=vit_b_ft224_20epp"))
