"""tools/evaluate.py on three processes."""

import json

import pytest

from tests.helpers.evaluate_tool import (
    TOOL,
    digits,  # noqa: F401 - a fixture
    evaluate,  # noqa: F401 - a fixture
)
from tests.helpers.processes import run


def test_processes_do_not_matter(evaluate, digits, tmp_path):
    options = (
        "--batch-size",
        "70",
        "--per-class",
        "--calibration",
        "--confusion",
        str(tmp_path / "c.png"),
    )
    one = evaluate(digits[0], *options)[1]
    file = tmp_path / "three.json"
    arguments = (str(digits[0]), *options, "--json", str(file))
    code, out, err = run(*arguments, processes=3, script=TOOL, timeout=600)
    assert code == 0 and out.count("images/s") == 1 and "3 process(es)" in out, err
    three = json.loads(file.read_text())
    for key in ("count", "top1", "top5", "per_class", "confusion"):
        assert three[key] == one[key], key
    counts = [[row["count"] for row in found["calibration"]] for found in (one, three)]
    assert counts[0] == counts[1]
    assert three["val_loss"] == pytest.approx(one["val_loss"], rel=1e-6)
    assert three["ece"] == pytest.approx(one["ece"], rel=1e-6)


def test_a_mistake_is_said_once_by_two_processes(tmp_path):
    code, _, err = run(str(tmp_path / "no"), processes=2, script=TOOL)
    assert code != 0 and err.count("no such file or folder") == 1
