"""The first 20 losses of the quickstart, to the last bit, and a hash of the weights: `python
tests/helpers/loss_trace.py`.

Before and after a refactor on one machine the output is the same to the letter. `--store` replaces
the stored trace, which any machine meets to 1e-6.
"""

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

STORED = Path(__file__).with_name("loss_trace.json")
sys.path.insert(0, str(STORED.parents[2]))


def trace() -> tuple[list[float], str]:
    """Losses of 20 steps of the quickstart on one thread, and the SHA-256 of the weights after
    them.
    """
    import torch

    from tests.helpers.runs import losses, short, train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        records = train(Path(folder), *short(20))
        weights = (
            Path(folder) / "checkpoints" / "step_00000020" / "model.safetensors"
        ).read_bytes()
    return losses(records), hashlib.sha256(weights).hexdigest()


if __name__ == "__main__":
    values, digest = trace()
    print("\n".join(value.hex() for value in values), digest, sep="\n")
    if "--store" in sys.argv:
        STORED.write_text(json.dumps(values, indent=1) + "\n")
