"""Export a run's model as timm's hub has them: timm.create_model("local-dir:DIR", pretrained=True) gives equal logits.

python tools/export.py runs/quickstart exported/quickstart
python tools/export.py runs/vit_s_800ep_tract exported/vit_s --ema --onnx --push USER/NAME

DIR gets model.safetensors, config.json, the resolved recipe.yaml, a model card, and on request model.onnx.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.results import export, trained
from deit_tract.results.trained import Trained
from deit_tract.train.log import read_metrics


def card(model: Trained, run: Path, ema: bool, name: str) -> str:
    """README.md: what the model is, the numbers that the run reached at this step, how it is loaded."""
    recipe, data = model.recipe, model.recipe.data
    tract = f"TrAct with lambda {recipe.model.tract:g}" if recipe.model.tract else "no TrAct"
    parameters = sum(parameter.numel() for parameter in model.net.parameters())
    lines = ["---", "library_name: timm", "pipeline_tag: image-classification"]
    lines += [
        "tags: [image-classification, timm]",
        "---",
        f"# {name.partition(':')[2]}",
        "",
        recipe.about,
        "",
    ]
    weights = "averaged weights (EMA)" if ema else "weights"
    lines += [
        f"- model: timm's `{recipe.model.name}`, {parameters:,} parameters, {data.classes} classes",
        f"- trained on: {data.name}, {data.image_size} px, first layer: {tract}, seed {recipe.seed}",
        f"- these are its {weights} after step {model.step:,}{ending(run)}",
        f"- {reached(run, model.step, ema)}",
    ]
    lines += [f"- made with: {versions(run)}", "", "`recipe.yaml` is the resolved recipe.", ""]
    lines += [
        "```python",
        "import timm",
        "",
        f'model = timm.create_model("{name}", pretrained=True)',
    ]
    lines += ["config = timm.data.resolve_model_data_config(model)"]
    return "\n".join(
        [*lines, "transform = timm.data.create_transform(**config, is_training=False)", "```", ""]
    )


def ending(run: Path) -> str:
    """` of a run that ...`, where it did not reach its end."""
    summary = _json(run / "summary.json")
    if summary is None:
        return " of a run that is not at its end"
    return (
        ""
        if summary["exit"] == "finished"
        else f" of a run that ended otherwise ({summary['exit']})"
    )


def reached(run: Path, step: int, ema: bool) -> str:
    """What the run's own evaluation of these weights found, from metrics.jsonl."""
    prefix = "ema_" if ema else ""
    keys = {"top1": "top-1 {:.2f} %", "top5": "top-5 {:.2f} %", "val_loss": "loss {:.4f}"}
    for record in reversed(read_metrics(run)):
        if record["step"] == step and f"{prefix}top1" in record:
            found = [
                text.format(record[prefix + key])
                for key, text in keys.items()
                if prefix + key in record
            ]
            return f"the run's evaluation of them on its validation images: {', '.join(found)}"
    return "the run did not evaluate them"


def versions(run: Path) -> str:
    environment = _json(run / "environment.json") or {}
    packages = environment.get("packages", {})
    named = [f"{name} {packages[name]}" for name in ("torch", "timm") if packages.get(name)]
    commit = [f"commit {environment['commit']}"] if environment.get("commit") else []
    return ", ".join(["deit_tract", *commit, *named])


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def hub_token() -> str:
    """Raises UserError without one."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(
            "--push", "there is no Hugging Face token", "run `hf auth login`, or set HF_TOKEN"
        )
    return token


def push(folder: Path, repository: str, token: str) -> str:
    """Uploads the folder as it is, which timm.models.push_to_hf_hub would write anew; the address."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token, library_name="timm")
        created = api.create_repo(repository, exist_ok=True)
        names = sorted(export.FILES)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            allow_patterns=names,
            commit_message="Add model",
        )
    except Exception as error:  # of the hub and the network
        what = f"the hub refused ({' '.join(str(error).split())[:200]})"
        raise UserError(f"--push {repository}", what, f"the export is in {folder}") from None
    return str(created)


def main() -> None:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run's folder")
    add(
        "folder",
        metavar="DIR",
        type=Path,
        help="new, empty, or an earlier export, which is replaced",
    )
    add("--ema", action="store_true", help="the averaged weights")
    add("--step", metavar="N", type=int, help="the checkpoint of this step (default: the newest)")
    add("--onnx", action="store_true", help="also write model.onnx")
    add("--push", metavar="USER/NAME", help="upload the folder to the Hugging Face hub")
    arguments = parser.parse_args()
    run, folder = arguments.run, Path(os.path.abspath(arguments.folder))
    token = hub_token() if arguments.push else None
    export.check_place(folder)
    if arguments.onnx:
        export.check_onnx()
    model = trained.of_run(run, trained.Choice(ema=arguments.ema, step=arguments.step))
    if model.recipe.task == "detect":
        raise UserError(
            run,
            "is a detector, which timm does not have",
            "its checkpoint is a torchvision model's weights",
        )
    name = f"hf-hub:{arguments.push}" if arguments.push else f"local-dir:{folder.name}"
    names = export.label_names(model.recipe)
    export.write(model, run, folder, names, card(model, run, arguments.ema, name), arguments.onnx)
    print(
        f"{arguments.folder}: {model.name} at step {model.step:,}; timm loads it to equal weights and logits"
    )
    if token:
        print(f"pushed to {push(folder, arguments.push, token)}")


if __name__ == "__main__":
    script(main)
