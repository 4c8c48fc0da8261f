"""Evaluate a trained model on a data set: top-1, top-5, loss, speed; on request details.

Of a detector: mean average precision as VOC2007 defines it, on request per class.

python tools/evaluate.py runs/quickstart            on the run's own data set
python tools/evaluate.py runs/vit_s_800ep_tract --ema --data imagenet --data-dir IMAGENET \\
    --real real.json
python tools/evaluate.py deit_3_small_224_1k.pth --model deit3_small_patch16_224 \\
    --data imagenet --data-dir IMAGENET
torchrun --nproc_per_node 8 tools/evaluate.py timm:deit3_small_patch16_224.fb_in1k \\
    --data imagenet_v2 --data-dir V2

Any number of processes (torchrun, or accelerate launch) counts each image once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.results.arguments import (
    OF_MODEL,
    OUTPUT,
    PICTURES,
    VERIFY,
    add_shared,
    given,
    new_file,
    path,
)
from deit_tract.results.evaluation import DATA, Request, evaluate_trained


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    add(
        "source",
        "a run, a checkpoint or exported folder, a file of weights, timm's",
        metavar="RUN|FILE|timm:NAME",
        type=given("source"),
    )
    add("--data", "data set (default: the run's own)", choices=DATA)
    add_shared(arguments, "--data-dir", "--no-verify")
    real = "ReaL's real.json: also count any of its labels as right (imagenet)"
    add("--real", real, metavar="FILE", type=path("--real"))
    add_shared(arguments, *OF_MODEL)
    table = "a table of the classes, printed or as a file"
    csv = new_file("--per-class", ".csv", hint="put RUN before the options")
    add("--per-class", table, metavar="FILE.csv", nargs="?", const=True, default=False, type=csv)
    calibration = "expected calibration error, 15 bins of the softmax confidence"
    add("--calibration", calibration, action="store_true")
    picture = new_file("--confusion", *PICTURES)
    add("--confusion", "draw which class is taken for which", metavar="FILE.png", type=picture)
    add_shared(arguments, "--json")
    return arguments


def main() -> None:
    text = evaluate_trained(Request(**vars(parser().parse_args())))
    if text is not None:
        print(text)


if __name__ == "__main__":
    script(main, OUTPUT | VERIFY)
