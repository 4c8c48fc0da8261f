"""`pip install -e .`: what pyproject.toml says is what is there."""

import tomllib

from setuptools import find_packages

import deit_tract
from tests.helpers import ROOT


def test_the_package_has_every_room_and_its_version():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["version"] == deit_tract.__version__
    build = settings["tool"]["setuptools"]
    found = {name.replace(".", "/") for name in find_packages(ROOT, **build["packages"]["find"])}
    folders = {file.parent for file in (ROOT / "deit_tract").rglob("*.py")}
    assert found == {str(folder.relative_to(ROOT)) for folder in folders}
    data = {file.suffix for file in (ROOT / "deit_tract").rglob("*.*") if file.is_file()}
    assert data - {".py", ".pyc"} == {".yaml"}, "package-data names what else is in it"
