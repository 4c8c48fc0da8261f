"""Export a run's model as timm's hub has them.

timm.create_model("local-dir:DIR", pretrained=True) then gives equal logits.

python tools/export.py runs/quickstart exported/quickstart
python tools/export.py runs/vit_s_800ep_tract exported/vit_s --ema --onnx --push USER/NAME

DIR gets model.safetensors, config.json, the resolved recipe.yaml, a model card, and on request
model.onnx.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.results import export, hub
from deit_tract.results.arguments import OUTPUT, add_shared, new_folder, path, repository
from deit_tract.results.card import model_card
from deit_tract.results.trained import Choice, load_trained
from deit_tract.train.weights_source import recipe_of_run


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    add("run", "a run's folder", metavar="RUN", type=path("RUN"))
    place = "new, empty, or an earlier export, which is replaced"
    add("folder", place, metavar="DIR", type=new_folder("DIR"))
    add_shared(arguments, "--step", "--best", "--ema")
    add("--onnx", "also write model.onnx", action="store_true")
    hub_name = {"metavar": "USER/NAME", "type": repository("--push")}
    add("--push", "upload the folder to the Hugging Face hub", **hub_name)
    return arguments


def main() -> None:
    arguments = parser().parse_args()
    folder = Path(os.path.abspath(arguments.folder))
    token = hub.hub_token() if arguments.push else None
    export.check_place(folder)
    if arguments.onnx:
        export.check_onnx()
    recipe_of_run(arguments.run)
    choice = Choice(ema=arguments.ema, best=arguments.best, step=arguments.step)
    model = load_trained(str(arguments.run), choice)
    if model.recipe.task == "detect":
        what = "is a detector, which timm does not have"
        instead = "its checkpoint is a torchvision model's weights"
        raise UserError(arguments.run, what, instead)
    name = f"hf-hub:{arguments.push}" if arguments.push else f"local-dir:{folder.name}"
    card = model_card(model, arguments.ema, name)
    names = export.label_names(model.recipe, arguments.run)
    export.write(model, folder, names, card, arguments.onnx)
    print(
        f"{arguments.folder}: {model.name} at step {model.step:,}; "
        "timm loads it to equal weights and logits"
    )
    if token:
        print(f"pushed to {hub.push(folder, arguments.push, token)}")


if __name__ == "__main__":
    script(main, OUTPUT)
