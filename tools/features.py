"""Embeddings of images by a trained model, as an .npz file: what its classifier sees.

python tools/features.py runs/vit_s_800ep_tract photos/ --out photos.npz
python tools/features.py timm:deit3_small_patch16_224.fb_in1k --data flowers102 --data-dir DIR \\
    --part train --out flowers.npz

The file has `features` (n, d) and `files` (n,), of a data set also `labels` (n,) and `classes`.
Images are prepared as in tools/evaluate.py. One that cannot be read is named and left out; the
exit code is then 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.recipe.datasets import names_for
from deit_tract.results.arguments import OUTPUT, VERIFY, add_model_and_images, add_shared, new_file
from deit_tract.results.features import Request, write_features


def parser() -> Parser:
    arguments = Parser(description=__doc__)
    add = arguments.add_argument
    add_model_and_images(arguments, "*")
    add("--data", choices=names_for("classify"), help="a data set in place of images")
    add_shared(arguments, "--data-dir", "--no-verify")
    part = "of the data set (default: val)"
    add("--part", choices=("train", "val"), default="val", help=part)
    out = {"metavar": "FILE.npz", "required": True, "type": new_file("--out", ".npz")}
    add("--out", help="what to write", **out)
    return arguments


def main() -> None:
    if write_features(Request(**vars(parser().parse_args()))):
        sys.exit(1)


if __name__ == "__main__":
    script(main, OUTPUT | VERIFY)
