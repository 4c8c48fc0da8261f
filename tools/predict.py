"""What a trained model finds on images: the best classes, or a detector's boxes.

python tools/predict.py runs/quickstart photos/                     a folder, files, 'photos/*.png'
python tools/predict.py exported/vit_s a.jpg b.jpg --top 3 --csv found.csv
python tools/predict.py timm:deit3_small_patch16_224.fb_in1k photos --pictures seen
python tools/predict.py runs/voc2007_frcnn_vgg16 photos --csv boxes.csv --pictures seen

Images are prepared as in tools/evaluate.py. One that cannot be read is named and left out; the
exit code is then 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deit_tract.cli import Parser, script
from deit_tract.results.arguments import OUTPUT, add_model_and_images, new_file, new_folder, whole
from deit_tract.results.predict import Request, predict


def parser() -> Parser:
    arguments = Parser(description=__doc__)
    add = arguments.add_argument
    add_model_and_images(arguments, "+")
    top = "classes to name for each image, or boxes to print (default: 5)"
    add("--top", metavar="N", type=whole("--top", 1, 10**6), default=5, help=top)
    table = "a row for each class named, or for every box, in place of the text"
    add("--csv", metavar="FILE.csv", type=new_file("--csv", ".csv"), help=table)
    folder = "each image with what was found on it"
    add("--pictures", metavar="DIR", type=new_folder("--pictures"), help=folder)
    return arguments


def main() -> None:
    if predict(Request(**vars(parser().parse_args()))):
        sys.exit(1)


if __name__ == "__main__":
    script(main, OUTPUT)
