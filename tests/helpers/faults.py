"""Shared by the tests of faults."""


def state(folder, step) -> dict[str, bytes]:
    path = folder / "checkpoints" / f"step_{step:08d}"
    return {name: (path / name).read_bytes() for name in ("model.safetensors", "optimizer.pt")}
