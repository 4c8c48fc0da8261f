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
from deit_tract.results.evaluation import DATA, Request, evaluate_trained

PRECISIONS = ("float32", "bf16", "fp16")


def parser() -> Parser:
    arguments = Parser(description=__doc__)

    def add(option: str, help: str, **how) -> None:
        arguments.add_argument(option, help=help, **how)

    add(
        "source",
        "a run, a checkpoint or exported folder, a file of weights, timm's",
        metavar="RUN|FILE|timm:NAME",
    )
    add("--data", "data set (default: the run's own)", choices=DATA)
    add("--data-dir", "the folder that holds it", metavar="DIR")
    add("--no-verify", "accept a part of a data set", action="store_true")
    real = "ReaL's real.json: also count any of its labels as right (imagenet)"
    add("--real", real, metavar="FILE", type=Path)
    add("--model", "timm's name of what FILE holds, or", metavar="NAME")
    add("--recipe", "the recipe that FILE was trained by", metavar="NAME|FILE")
    step = "the run's checkpoint of this step (default: the newest)"
    add("--step", step, metavar="N", type=int)
    add("--ema", "the run's averaged weights", action="store_true")
    add("--image-size", "instead of the model's own", metavar="PX", type=int)
    crop = "centre crop as a fraction of the resized side"
    add("--crop", crop, metavar="FRACTION", type=float)
    add("--precision", "default: the run's own, else float32", choices=PRECISIONS)
    add("--batch-size", "images per process and forward pass", metavar="N", type=int)
    add("--workers", "loader processes per process", metavar="N", type=int)
    table = "a table of the classes, printed or as a file"
    add("--per-class", table, metavar="FILE.csv", nargs="?", const="")
    calibration = "expected calibration error, 15 bins of the softmax confidence"
    add("--calibration", calibration, action="store_true")
    add("--confusion", "draw which class is taken for which", metavar="FILE.png", type=Path)
    add("--json", "everything as JSON", metavar="FILE", type=Path)
    return arguments


def main() -> None:
    text = evaluate_trained(Request(**vars(parser().parse_args())))
    if text is not None:
        print(text)


if __name__ == "__main__":
    script(main)
