"""What several test files use."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAL_IMAGES = ROOT.parent / "shared" / "data"
