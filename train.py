"""Train a model from a recipe, or resume a run that was stopped.

python train.py --recipe quickstart
python train.py --recipe folder_vit_ti --data-dir DIR --set optim.lr=1e-3

`accelerate launch` or `python tools/launch.py` in place of `python` trains on several GPUs.
"""

from deit_tract.cli import main

if __name__ == "__main__":
    main(__doc__)
