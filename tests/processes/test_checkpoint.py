"""A checkpoint on a disk that fills up, with a limit set in another process."""

import os
import resource
import subprocess
import sys

import pytest

from deit_tract.train import checkpoint
from tests.helpers.checkpoint import save

FILL = """
import resource, sys
from pathlib import Path
from deit_tract.common.errors import UserError
from tests.helpers.checkpoint import save
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    save(Path({folder!r}), 10)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 1000, 16_000, 17_500])
def test_a_disk_that_refuses_keeps_the_one_before(tmp_path, limit):
    """The kernel refuses every byte of a file beyond `limit`, as a full disk would."""
    good = save(tmp_path, 5)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    script = FILL.format(folder=str(tmp_path), limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    whole = limit == 17_500
    assert done.returncode == 0, done.stderr
    if whole:
        assert checkpoint.newest(tmp_path).name == "step_00000010"
    else:
        assert (
            "cannot be written" in done.stdout
            and "step 5 is intact; free some space" in done.stdout
        )
        assert checkpoint.newest(tmp_path) == good and len(list(tmp_path.iterdir())) == 1
