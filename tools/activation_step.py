"""How well a run's first step moves the first layer's activations, with and without TrAct.

python tools/activation_step.py --data-dir DIR --seeds 8 --csv steps.csv --plot steps.png
python tools/activation_step.py quickstart_baseline --lambdas 0.1

For each seed a fresh network takes the first step of the recipe's run: the cosine of the change of
the first layer's activations with their negative gradient, over the best that any weight change can
have (least squares). Last columns: how much more the patches with most contrast (a tenth) move than
those with least, and how much more the gradient asks for.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.common.errors import UserError
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results.arguments import PICTURES, add_shared, given, new_file, whole

RECIPES = ["cifar10_cnn_8ep_sgd", "cifar10_vit_100ep"]


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    names = {"metavar": "RECIPE", "nargs": "*", "type": given("RECIPE"), "default": RECIPES}
    add("recipes", f"recipes of classifiers (default: {' '.join(RECIPES)})", **names)
    add_shared(arguments, "--data-dir")
    override = "override a value of all recipes; may be repeated"
    add("--set", override, metavar="section.key=value", action="append", default=[])
    lambdas = "of TrAct, beside the plain layer (default: 0.05 0.1 0.2)"
    add("--lambdas", lambdas, metavar="L", nargs="+", default=["0.05", "0.1", "0.2"])
    count = {"metavar": "N", "type": whole("--seeds", 1, 1000), "default": 8}
    add("--seeds", "0 to N - 1 (default: 8)", **count)
    add("--csv", "every step's numbers", metavar="FILE.csv", type=new_file("--csv", ".csv"))
    picture = new_file("--plot", *PICTURES)
    add("--plot", "a picture of the shares", metavar="FILE.png", type=picture)
    return arguments


def main() -> None:
    arguments = parser().parse_args()
    # images are read one by one, which gives the same pixels: a step needs few of them
    common = ["data.resident=false", *arguments.set]
    plans = []
    for name in arguments.recipes:
        for lam in ("null", *arguments.lambdas):
            for seed in range(arguments.seeds):
                own = [*common, f"model.tract={lam}", f"seed={seed}"]
                plans.append((name, load_recipe(name, own, arguments.data_dir)))
    for name, recipe in plans:
        if recipe.task != "classify":
            what = f"{name} is a recipe of another task"
            raise UserError("RECIPE", what, "choose one of a classifier")

    from deit_tract.data.sets.load import load_splits
    from deit_tract.results import activation_step

    images = {name: load_splits(recipe.data).train for name, recipe in dict(plans).items()}
    steps = [activation_step.measure(recipe, images[name], name) for name, recipe in plans]
    print(activation_step.markdown(steps))
    if arguments.csv:
        activation_step.write_csv(steps, arguments.csv)
    if arguments.plot:
        activation_step.plot(steps, arguments.plot)


if __name__ == "__main__":
    script(main)
