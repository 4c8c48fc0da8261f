"""Names of timm's models: what a person may have meant."""

import difflib
import re

import timm

# as papers and torchvision write them
SIZES = {"t": "tiny", "ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}


def no_such_model(name: str) -> tuple[str, str]:
    """What is wrong with a name that timm does not know, and the names most like it."""
    words = re.split(r"[^a-z0-9.]+", name.lower())
    if words[0] in ("vit", "deit", "deit3"):  # papers write ViT-B/16
        words = [f"patch{word}" if word.isdigit() else SIZES.get(word, word) for word in words]
    plain = "_".join(words)
    near = difflib.get_close_matches(plain, timm.list_models(), n=3)
    instead = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has the names"
    return f"timm has no model '{name}'", instead
