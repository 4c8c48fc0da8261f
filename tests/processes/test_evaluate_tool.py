"""tools/evaluate.py on two and three processes."""

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
    found = [evaluate(digits[0], *options)[1]]
    for processes in (2, 3):
        file = tmp_path / f"{processes}.json"
        arguments = (str(digits[0]), *options, "--json", str(file))
        code, out, err = run(*arguments, processes=processes, script=TOOL, timeout=600)
        assert code == 0 and out.count("images/s") == 1 and f"{processes} process(es)" in out, err
        found.append(json.loads(file.read_text()))
    for other in found[1:]:
        for key in ("count", "top1", "top5", "per_class", "confusion"):
            assert other[key] == found[0][key], key
        assert [row["count"] for row in other["calibration"]] == [
            row["count"] for row in found[0]["calibration"]
        ]
        assert other["val_loss"] == pytest.approx(found[0]["val_loss"], rel=1e-6)
        assert other["ece"] == pytest.approx(found[0]["ece"], rel=1e-6)


def test_a_mistake_is_said_once_by_two_processes(tmp_path):
    code, _, err = run(str(tmp_path / "no"), processes=2, script=TOOL)
    assert code != 0 and err.count("no such file or folder") == 1
