"""Files of a run's folder read back: what a crash leaves is named by file and line."""

import json

import pytest

from deit_tract.common.errors import UserError
from deit_tract.train.records import (
    digest,
    read_environment,
    read_metrics,
    read_progress,
    read_summary,
)

LINES = [{"step": step, "epoch": step / 2, "loss": 1.5, "top1": 7.0} for step in (2, 4)]
GOOD = "".join(json.dumps(line) + "\n" for line in LINES)


def refused(read, folder) -> str:
    with pytest.raises(UserError) as caught:
        read(folder)
    (line,) = str(caught.value).splitlines()
    return line.removeprefix(f"{folder}/")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "summary.json:1: is empty, as a crash may leave it; run the training command again"),
        (b"\0" * 99, "summary.json:1: is empty, as a crash may leave it"),
        (b'{\n "exit": "fini', "summary.json:2: is not JSON"),
        (b'{"exit": "\xff"}', "summary.json:1: is not text"),
        (b"[" * 10**5, "summary.json:1: is not JSON"),
        (b'{"exit": "a", "exit": "b"}', "summary.json:1: is not JSON (a key is there twice)"),
        (b'{"seconds": ' + b"9" * 5000 + b"}", "summary.json:1: is not JSON"),
        (b"[1]", "summary.json:1: is not a JSON object"),
        (b"{}", "summary.json:1: 'exit': field required"),
        (b'{\n "exit": null}', "summary.json:2: 'exit': input should be a valid string"),
        (b'{"exit": "a",\n "seconds": NaN}', "summary.json:2: 'seconds': input should be a finite"),
        (b'{"exit": "a",\n"seconds": 1e999}', "summary.json:2: 'seconds': input should be"),
    ],
)
def test_a_broken_summary_is_one_line(tmp_path, content, message):
    (tmp_path / "summary.json").write_bytes(content)
    assert message in refused(read_summary, tmp_path)


def test_what_is_not_there_is_none_and_a_folder_is_no_file(tmp_path):
    assert read_summary(tmp_path) is None and read_environment(tmp_path) is None
    assert read_metrics(tmp_path) == []
    (tmp_path / "environment.json").mkdir()
    assert "environment.json: is not a plain file" in refused(read_environment, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("{}", "'step': field required"),
        ('{"step": 5, "epoch": 1', "is not JSON"),
        ('{"step": 5.5, "epoch": 1}', "'step': input should be a valid integer"),
        ('{"step": 5, "epoch": NaN}', "'epoch': input should be a finite number"),
        ('{"step": 5, "epoch": 1, "top1": 101}', "'top1' is 101"),
        ('{"step": 5, "epoch": 1, "ema_top1": null}', "'ema_top1' is null"),
        ('{"step": 5, "epoch": 1, "loss": NaN}', "'loss' is NaN"),
        ('{"step": 5, "epoch": 1, "lr": [1]}', "'lr' is [1]"),
        ('{"step": 1, "epoch": 1}', "step 1 comes after step 4"),
    ],
)
def test_a_broken_line_of_metrics(tmp_path, line, message):
    """It is refused, or left out aloud; at the end and without a line end it is a killed run's."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(f"{GOOD}{line}\n")
    found = refused(read_metrics, tmp_path)
    assert found.startswith(f"metrics.jsonl:3: {message}") and "or remove the line" in found
    said = []
    assert read_metrics(tmp_path, said.append) == LINES
    assert len(said) == 1 and said[0].endswith("; 1 broken line left out")
    file.write_text(GOOD + line)
    assert read_metrics(tmp_path) == LINES


def test_zeros_after_a_power_loss(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(GOOD.encode() + b"\0" * 4096)
    said = []
    assert read_metrics(tmp_path) == LINES == read_metrics(tmp_path, said.append)
    assert "metrics.jsonl:3: is empty" in said[0]


def test_a_checkpoints_progress_knows_its_own_checksum(tmp_path):
    values = {"step": 4, "files": {"model.safetensors": [3, "abc"]}, "best": {"top1": 5.0}}
    file = tmp_path / "progress.json"
    file.write_text(json.dumps(values))  # as older versions wrote it
    assert read_progress(tmp_path).files == {"model.safetensors": (3, "abc")}
    file.write_text(json.dumps(values | {"sha256": digest(values)}))
    assert read_progress(tmp_path).step == 4
    file.write_text(json.dumps(values | {"sha256": digest(values), "step": 5}))
    assert "progress.json: is changed" in refused(read_progress, tmp_path)
    file.write_text(json.dumps(values | {"files": {"../../etc/passwd": [3, "abc"]}}))
    assert "progress.json:1: 'files.../../etc/passwd" in refused(read_progress, tmp_path)
