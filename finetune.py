"""Train from given weights instead of a fresh initialisation; everything else is as in train.py.

python finetune.py --recipe vit_b_ft224_20ep --checkpoint runs/vit_b_800ep
python finetune.py --recipe vit_b_ft224 --checkpoint deit_3_base_192_1k.pth
python finetune.py --recipe transfer_cars_vit_s --checkpoint timm:deit3_small_patch16_224

--checkpoint is a run's folder, a .safetensors or .pth file with timm's or DeiT-III's names,
timm:NAME or, for detection, torchvision:NAME or VGG-16's file. --data-dir DIR has the images.
"""

from deit_tract.cli import main

if __name__ == "__main__":
    main(__doc__, finetune=True)
