"""Train a model from a recipe, or resume a run that was stopped.

accelerate launch train.py --recipe quickstart
accelerate launch train.py --recipe folder_vit_ti --data-dir DIR --set optim.lr=1e-3
"""

from deit_tract.cli import main

if __name__ == "__main__":
    main(__doc__)
