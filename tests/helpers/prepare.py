"""Shared by the tests of prepare."""

import runpy
import sys

import pytest
from PIL import Image
from timm.data import ImageNetInfo

from tests.helpers import ROOT

OFFICIAL = ImageNetInfo().label_names()


@pytest.fixture
def prepare(monkeypatch, capsys):
    """A function that runs the tool in this process: exit code, stdout and the lines of stderr."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools" / "prepare.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        out, errors = capsys.readouterr()
        return code, out, errors.splitlines()

    return run


@pytest.fixture
def tiny(tmp_path):
    """Two of ImageNet's classes with 40 small images each in train, and six validation images,
    flat.
    """
    for number in range(6):
        path = tmp_path / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    for name in OFFICIAL[:2]:
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(40):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{name}_{index}.JPEG")
    return tmp_path
