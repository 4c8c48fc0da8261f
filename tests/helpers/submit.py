"""Shared by the tests of submit."""

import importlib.util
import sys

import pytest

from tests.helpers import ROOT

spec = importlib.util.spec_from_file_location("submit", ROOT / "tools" / "submit.py")
submit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(submit)


def call(capsys, monkeypatch, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout and lines of stderr of tools/submit.py in this process."""
    monkeypatch.setattr(sys, "argv", ["submit.py", *arguments])
    try:
        submit.script(submit.main)
        code = 0
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.fixture
def printed(capsys, monkeypatch):
    """The script for the quickstart with these arguments."""

    def text(*arguments: str) -> str:
        code, out, err = call(capsys, monkeypatch, "--recipe", "quickstart", *arguments, "--print")
        assert code == 0, err
        return out

    return text
