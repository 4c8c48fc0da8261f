"""Shared by the tests of accelerate configs."""

from tests.helpers import ROOT

FOLDER = ROOT / "tools" / "accelerate"
