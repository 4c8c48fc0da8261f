"""An exported model's card (README.md): what it is, what it reached, how it is loaded."""

from pathlib import Path

from deit_tract.common.text import on_one_line
from deit_tract.results.trained import Trained
from deit_tract.train.records import Environment, read_environment, read_metrics, read_summary

CARD = """---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm]
---
# {title}

{about}

- model: timm's `{model}`, {parameters:,} parameters, {classes} classes
- trained on: {data}, {size} px, first layer: {tract}, seed {seed}
- these are its {weights} after step {step:,}{chosen}{ending}
- {reached}
- made with: {versions}

`recipe.yaml` is the resolved recipe.

```python
import timm

model = timm.create_model("{name}", pretrained=True)
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
```
"""
EVALUATED = {"top1": "top-1 {:.2f} %", "top5": "top-5 {:.2f} %", "val_loss": "loss {:.4f}"}


def model_card(model: Trained, ema: bool, name: str) -> str:
    """Return the card of a run's model that timm loads as `name`."""
    recipe, run = model.recipe, model.source.run
    value = recipe.model.tract
    return CARD.format(
        title=name.partition(":")[2],
        about=recipe.about,
        model=recipe.model.name,
        parameters=sum(parameter.numel() for parameter in model.net.parameters()),
        classes=recipe.data.classes,
        data=recipe.data.name,
        size=recipe.data.image_size,
        tract=f"TrAct with lambda {value:g}" if value else "no TrAct",
        seed=recipe.seed,
        weights="averaged weights (EMA)" if ema else "weights",
        step=model.step,
        chosen=" (chosen as the best on its validation images)" if model.source.best else "",
        ending=_ending(run),
        reached=_reached(run, model.step, "ema_" if ema else ""),
        versions=_versions(run),
        name=name,
    )


def _ending(run: Path) -> str:
    """Return ` of a run that ...` unless the run finished."""
    summary = read_summary(run)
    if summary is None:
        return " of a run that has not finished"
    if summary.exit == "finished":
        return ""
    return f" of a run that ended otherwise ({on_one_line(summary.exit)})"


def _reached(run: Path, step: int, prefix: str) -> str:
    """Return what the run's own evaluation of these weights found, from metrics.jsonl."""
    for record in reversed(read_metrics(run)):
        if record["step"] == step and f"{prefix}top1" in record:
            values = {key: record.get(prefix + key) for key in EVALUATED}
            found = [
                EVALUATED[key].format(value) for key, value in values.items() if value is not None
            ]
            return f"the run's evaluation of them on its validation images: {', '.join(found)}"
    return "the run did not evaluate them"


def _versions(run: Path) -> str:
    environment = read_environment(run) or Environment()
    packages = environment.packages
    named = [f"{name} {packages[name]}" for name in ("torch", "timm") if packages.get(name)]
    commit = [f"commit {environment.commit}"] if environment.commit else []
    return on_one_line(", ".join(["deit_tract", *commit, *named]))
