"""What a trained model's classes are called."""

from collections import Counter

from timm.data import ImageNetInfo, infer_imagenet_subset

from deit_tract.data.sets.imagenet import SYNSET
from deit_tract.results.export import label_names
from deit_tract.results.trained import Trained
from deit_tract.train.records import read_export


def class_names(model: Trained) -> list[str]:
    """Return a name for each class; their numbers where nothing tells their names.

    A detector's are its recipe's. Others come with the export or the run, from its data, or from
    timm, which guesses ImageNet's variant by the number of classes. Synsets become words.
    """
    recipe = model.recipe
    if recipe is not None and recipe.task == "detect":
        return recipe.detect.class_names
    count = model.view["classes"]
    run = model.source.run
    names = _of_export(model) or (label_names(recipe, run) if recipe else _of_timm(model))
    if names is None or len(names) != count:
        return [str(number) for number in range(count)]
    return in_words(names)


def _of_export(model: Trained) -> list[str] | None:
    folder = model.source.exported
    if folder is None:
        return None
    return read_export(folder).label_names


def _of_timm(model: Trained) -> list[str] | None:
    names = model.net.pretrained_cfg.get("label_names")
    if names:
        return list(names)
    subset = infer_imagenet_subset(model.net)
    return ImageNetInfo(subset).label_names() if subset else None


def in_words(names: list[str]) -> list[str]:
    """Return ImageNet's synsets by their first word, `tench`; other names as they are.

    Words that several synsets share keep them: `crane (n02012849)`.
    """
    words = list(names)
    left = {place for place, name in enumerate(names) if SYNSET.fullmatch(name)}
    for subset in ("imagenet-1k", "imagenet-22k"):
        if not left:
            break
        info = ImageNetInfo(subset)  # the second one takes a second
        known = set(info.label_names())
        for place in {place for place in left if names[place] in known}:
            words[place] = info.label_name_to_description(names[place]).partition(",")[0]
            left.remove(place)
    shared = {word for word, times in Counter(words).items() if times > 1}
    return [
        f"{word} ({name})" if word in shared and word != name else word
        for word, name in zip(words, names, strict=True)
    ]
