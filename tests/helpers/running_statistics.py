"""Shared by the tests of running statistics."""

from safetensors.torch import load_file

from tests.helpers.runs import short, train

# A narrow CNN on made images, its weights hardly moved: batch normalisation would blow rounding up
SMALL = (
    "data.name=synthetic",
    "data.image_size=16",
    "model.args.widths=[4,4,4]",
    "model.args.stem=4",
    "batch.size=16",
)
LANES = (
    *SMALL,
    "batch.lanes=4",
    "optim.lr=1e-3",
    "schedule.name=constant",
    "ema.decay=0.5",
    "batch.exact=true",
)


def cnn(folder, steps: int, *overrides: str):
    train(
        folder,
        *short(steps, "schedule.warmup_steps=null", *overrides),
        recipe="cifar10_cnn_8ep_sgd_tract",
    )
    return weights(folder, steps)


def weights(folder, step: int) -> dict:
    files = (folder / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    return {f"{file.stem}.{key}": value for file in files for key, value in load_file(file).items()}
