"""Names that people bring from timm's and DeiT's commands, and the keys and options they mean."""

from collections.abc import Collection, Iterator, Sequence

# Without dashes, in lower case; after an equals sign the value that a flag without one means.
KEYS = {
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "base_lr": "optim.lr",
    "wd": "optim.weight_decay",
    "weight_decay": "optim.weight_decay",
    "momentum": "optim.momentum",
    "nesterov": "optim.nesterov=true",
    "opt": "optim.name",
    "optimizer": "optim.name",
    "opt_eps": "optim.eps",
    "eps": "optim.eps",
    "opt_betas": "optim.betas",
    "betas": "optim.betas",
    "clip_grad": "optim.clip_grad",
    "grad_clip": "optim.clip_grad",
    "max_grad_norm": "optim.clip_grad",
    "epochs": "schedule.epochs",
    "num_epochs": "schedule.epochs",
    "max_epochs": "schedule.epochs",
    "steps": "schedule.steps",
    "max_steps": "schedule.steps",
    "sched": "schedule.name",
    "scheduler": "schedule.name",
    "lr_scheduler": "schedule.name",
    "warmup": "schedule.warmup_epochs",
    "warmup_epochs": "schedule.warmup_epochs",
    "warmup_steps": "schedule.warmup_steps",
    "warmup_lr": "schedule.warmup_lr",
    "min_lr": "schedule.min_lr",
    "sched_on_updates": "schedule.update=step",
    "batch": "batch.size",
    "batch_size": "batch.size",
    "bs": "batch.size",
    "b": "batch.size",
    "ngpus": "batch.lanes",
    "model": "model.name",
    "model_name": "model.name",
    "arch": "model.name",
    "model_kwargs": "model.args",
    "drop": "model.args.drop_rate",
    "dropout": "model.args.drop_rate",
    "drop_rate": "model.args.drop_rate",
    "drop_path": "model.drop_path",
    "drop_path_rate": "model.drop_path",
    "attn_only": "model.train=attn",
    "tract": "model.tract",
    "input_size": "data.image_size",
    "img_size": "data.image_size",
    "image_size": "data.image_size",
    "resolution": "data.image_size",
    "nb_classes": "data.classes",
    "num_classes": "data.classes",
    "classes": "data.classes",
    "in_chans": "data.channels",
    "num_workers": "data.workers",
    "workers": "data.workers",
    "j": "data.workers",
    "data_set": "data.name",
    "dataset": "data.name",
    "mean": "data.mean",
    "std": "data.std",
    "aa": "augment.rand_augment",
    "threeaugment": "augment.three_augment=true",
    "three_augment": "augment.three_augment=true",
    "color_jitter": "augment.color_jitter",
    "repeated_aug": "augment.repeats=3",
    "no_repeated_aug": "augment.repeats=1",
    "aug_repeats": "augment.repeats",
    "hflip": "augment.flip",
    "scale": "augment.crop_scale",
    "ratio": "augment.crop_ratio",
    "train_interpolation": "augment.interpolation",
    "mixup": "mix.mixup",
    "cutmix": "mix.cutmix",
    "mixup_prob": "mix.prob",
    "mixup_switch_prob": "mix.switch_prob",
    "smoothing": "loss.smoothing",
    "label_smoothing": "loss.smoothing",
    "bce_loss": "loss.name=bce",
    "ema": "ema.decay",
    "ema_decay": "ema.decay",
    "model_ema": "ema.decay",
    "model_ema_decay": "ema.decay",
    "crop_pct": "evaluate.crop",
    "eval_crop_ratio": "evaluate.crop",
    "eval_batch_size": "evaluate.batch_size",
    "validation_batch_size": "evaluate.batch_size",
    "amp": "precision.autocast=auto",
    "amp_dtype": "precision.autocast",
    "bf16": "precision.autocast=bf16",
    "fp16": "precision.autocast=fp16",
    "mixed_precision": "precision.autocast",
    "compile": "precision.compile=true",
    "torchcompile": "precision.compile=true",
    "channels_last": "precision.channels_last=true",
    "checkpoint_hist": "save.keep",
    "log_interval": "log.every_steps",
    "log_wandb": "log.trackers=[wandb]",
    "seed": "seed",
}
OPTIONS = {
    "data_path": "--data-dir",
    "data": "--data-dir",
    "dir": "--data-dir",
    "output_dir": "--output",
    "out": "--output",
    "save_dir": "--output",
    "config": "--recipe",
    "cfg": "--recipe",
    "finetune": "--checkpoint",
    "weights": "--checkpoint",
}
ADVICE = {
    "resume": "the same command again resumes a run",
    "start_epoch": "the same command again resumes a run",
    "eval": "use tools/evaluate.py",
    "pretrained": "use finetune.py --checkpoint timm:NAME",
    "finetune": "use finetune.py --checkpoint FILE",
    "weights": "use finetune.py --checkpoint FILE",
    "nproc_per_node": "several processes are started by accelerate launch, before train.py",
    "num_processes": "several processes are started by accelerate launch, before train.py",
    "gpus": "several processes are started by accelerate launch, before train.py",
}


def key_of(name: str) -> str | None:
    """The recipe key that another trainer's name means; None if it is not known."""
    alias = KEYS.get(_plain(name))
    return None if alias is None else alias.partition("=")[0]


def instead_of(words: Sequence[str], options: Collection[str]) -> str:
    """What to write for arguments that a command with these options does not have.

    words: as on the command line, a flag's values after it. Empty if nothing is known about them.
    """
    write, advice = [], []
    for flag, values in _flags(words):
        name = _plain(flag)
        if OPTIONS.get(name) in options:
            write.append(" ".join((OPTIONS[name], *(values or ["..."]))))
        elif name in ADVICE:
            advice.append(ADVICE[name])
        elif name in KEYS and "--set" in options:
            key, _, fixed = KEYS[name].partition("=")
            given = f"[{','.join(values)}]" if len(values) > 1 else "".join(values)
            write.append(f"--set {key}={given or fixed or '...'}")
    if write:
        advice.insert(0, f"write {' '.join(write)}")
    return "; ".join(dict.fromkeys(advice))


def _flags(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with its values; values before any flag are left out."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
    return iter(found)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
