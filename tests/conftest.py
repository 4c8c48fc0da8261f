"""Order and fixtures of all tests; helpers are modules in tests/helpers."""

import tarfile
from pathlib import Path

import pytest
import torch

from tests.helpers import REAL_IMAGES, ROOT

FOLDERS = ("long", "processes", "runs", "unit")
LONGEST = (
    "test_quickstart.py",
    "test_kill_rounds.py",
    "test_faults.py",
    "test_zero.py",
    "test_processes.py",
    "test_submit.py",
)  # a minute and more each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two cores, which take file after file, end together."""
    place = {name: place for place, name in enumerate(LONGEST)}

    def order(item: pytest.Item) -> tuple[int, int]:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return FOLDERS.index(folder), place.get(item.path.name, len(place))

    items.sort(key=order)


@pytest.fixture(autouse=True)
def _one_thread_and_fresh_accelerate():
    """The same arithmetic in every test, and no launcher state from the test before."""
    from accelerate.state import AcceleratorState, GradientState

    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def real_images(tmp_path_factory):
    """A function that unpacks an archive of real images and returns its folder; skips where there
    are none.
    """

    def unpack(name: str) -> Path:
        archive = REAL_IMAGES / name
        if not archive.exists():
            pytest.skip(f"needs the real images {name} beside the checkout")
        folder = tmp_path_factory.mktemp(archive.name.split(".")[0])
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return folder

    return unpack
