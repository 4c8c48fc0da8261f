"""tools/prepare.py as a command: what it says of a flat validation folder."""

import os
import subprocess
import sys

from tests.helpers import ROOT
from tests.helpers.prepare import tiny  # noqa: F401 - a fixture


def subprocess_prepare(*arguments: object) -> tuple[int, str, list[str]]:
    command = [sys.executable, str(ROOT / "tools" / "prepare.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_flat_validation_is_an_error_that_names_the_way(tiny):
    code, _, errors = subprocess_prepare("imagenet", tiny, "--quick")
    assert code == 2 and len(errors) == 1 and errors[0].endswith("--fix-val LABELS")
