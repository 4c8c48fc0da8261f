"""tools/prepare.py on a set in VOC's layout."""

import os
import subprocess
import sys

from tests.helpers import ROOT
from tests.helpers.voc import (
    PHOTOS,
    small,  # noqa: F401 - a fixture
    write,
)


def prepare(*arguments: object) -> tuple[int, str, list[str]]:
    words = [sys.executable, str(ROOT / "tools" / "prepare.py"), "voc2007", *map(str, arguments)]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_the_tool_names_changed_tars_wrong_counts_and_broken_photos(small):
    write(small, PHOTOS, {"trainval": list(PHOTOS), "test": ["000005"]})
    (small / "VOCtest_06-Nov-2007.tar").write_bytes(b"half of it")
    (small / "VOCdevkit" / "VOC2007" / "JPEGImages" / "empty.jpg").write_bytes(b"no image")
    code, out, errors = prepare(small, "--workers", "0")
    assert code == 2 and "1 of 2 official files there" in out
    assert "trainval: 3 images, 3 objects, 1 difficult" in out and out.endswith(
        "4 images decoded; 4 problems\n"
    )
    assert (
        "VOCtest_06-Nov-2007.tar: differs from the official file (MD5 " in errors[0]
        and "3 training images, PASCAL VOC2007 has 5,011" in errors[1]
    )
    assert (
        "1 validation images, PASCAL VOC2007 has 4,952" in errors[2]
        and "empty.jpg: cannot be read as an image" in errors[3]
    )
