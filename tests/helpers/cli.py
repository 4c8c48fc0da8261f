"""Shared by the tests of cli."""

import sys

from deit_tract import cli


def call(
    capsys, monkeypatch, *arguments: str, finetune: bool = False
) -> tuple[int, str, list[str]]:
    """Exit code, stdout and lines of stderr of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    try:
        cli.main("Train.", finetune)
        code = 0
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()
