"""Shared by the tests of step."""

from safetensors.torch import load_file


def weights(run_folder, step):
    return load_file(run_folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def apart(a: dict, b: dict) -> float:
    return max((a[key] - b[key]).abs().max().item() for key in a)


# ---- several lanes in one forward ----------------------------------------------------------------

DRAWS = ("model.drop_path=0.3", "mix.prob=1", "mix.cutmix=1.0")
