"""Settings that nobody chose with care: planned, then one step of training, in a limited time.

`outcome` says what became of one; tests/long has the schema's limits and seeded mutations.
"""

import contextlib
import io
import math
import random
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from deit_tract.common.errors import UserError
from deit_tract.plan.plan import make_plan
from deit_tract.recipe.datasets import DATASETS
from deit_tract.recipe.describe import explain, schema
from deit_tract.recipe.resolve import Recipe, load_recipe
from deit_tract.train import loop
from tests.helpers.detect import ADAM, RECIPE, SMALL
from tests.helpers.fuzz import assert_lines, at_most, mutate_text, scrambled

LIMIT = 60  # s for one setting; a quiet core takes below one
SMALL_STEP = 2**30, 3e11  # bytes and FLOPs of a step that is tried

FAULTS = ("traceback", "hang", "late")

SHORT = ("schedule.steps=1", "schedule.warmup_steps=0", "data.workers=0")
_IMAGES = ("data.name=synthetic", "data.classes=4", "batch.size=8", "batch.lanes=2", *SHORT)
_VIT = (
    "data.image_size=16",
    "model.args.embed_dim=32",
    "model.args.depth=1",
    "model.args.num_heads=2",
    "model.args.patch_size=4",
    "model.pretrained=false",
    "model.train=all",
    *_IMAGES,
)
_OWN = (
    "model.name=vit_tiny_patch16_224",
    "data.split=null",
    "data.mean=[0.5, 0.5, 0.5]",
    "data.std=[0.2, 0.2, 0.2]",
    *_VIT,
)
TINY = {  # a recipe of each family, and what makes its step small
    "quickstart": SHORT,
    RECIPE: (*SMALL, *ADAM, *SHORT),
    "vit_s_800ep_tract": _VIT,
    "vit_b_ft224_lamb": _VIT,
    "vit_b_ft224_20ep": _VIT,
    "transfer_cars_vit_s_sgd_tract": _VIT,
    "folder_finetune": _OWN,
    "vit_ti_tinyimagenet_100ep_tract": _VIT,
    "cifar10_vit_100ep": ("model.args.depth=1", *_IMAGES),
    "cifar100_resnet18_sgd_100ep_tract": (
        "model.args.stem=4",
        "model.args.widths=[4,4,4,4]",
        "data.image_size=8",
        *_IMAGES,
    ),
    "cifar10_cnn_8ep_adam_tract": _IMAGES,
}

# ---- what becomes of a setting -------------------------------------------------------------------


class _Taken(Exception):
    """The first step is taken, and more are to come."""


def outcome(name: str, settings: list[str]) -> tuple[str, str]:
    """What became of a recipe, and what it said.

    "refused" (one line by the loader or --plan), "step" (one was trained), "large" (too much for a
    test), or a fault: "traceback", "hang", "late" (--plan accepted it and the run did not).
    """
    planned = False
    try:
        with _quiet(), at_most(LIMIT), tempfile.TemporaryDirectory() as folder:
            recipe = load_recipe(name, settings)
            cost = make_plan(recipe, Path(folder) / "plan").cost
            planned = True
            size = cost.activations + 4 * cost.weights
            flops = recipe.batch.size * (cost.training + cost.tract)
            if size > SMALL_STEP[0] or flops > SMALL_STEP[1] or recipe.precision.compile:
                return "large", ""
            if recipe.data.workers > 2 or DATASETS[recipe.data.name].on_disk:
                return "large", "many processes, or data that is not here"
            _one_step(recipe, Path(folder) / "run")
    except UserError as error:
        try:
            assert_lines(error)
        except AssertionError:
            return "traceback", f"not a line: {error}"
        return "late" if planned else "refused", str(error)
    except AssertionError as error:
        ended = str(error).startswith("no end after")
        return "hang" if ended else "traceback", traceback.format_exc()[-600:]
    except Exception:
        return "traceback", traceback.format_exc()[-600:]
    return "step", ""


def _one_step(recipe: Recipe, folder: Path) -> None:
    """Train, until the first step is taken or, of a run of at most two, to the end."""
    whole = loop.Run.optimizer_step

    def first(self, step, batches):
        if step and self.total > 2:
            raise _Taken
        return whole(self, step, batches)

    loop.Run.optimizer_step = first
    try:
        with contextlib.suppress(_Taken):
            loop.train(recipe, folder)
    finally:
        loop.Run.optimizer_step = whole
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with streams[0], streams[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- every key at its limits ---------------------------------------------------------------------


NEEDS = {  # what a key has an effect with
    "optim.momentum": ["optim.name=sgd"],
    "optim.nesterov": ["optim.name=sgd"],
    "optim.first_layer.": ["optim.name=adam", "optim.clip_grad=null"],
    "optim.name": ["optim.clip_grad=null"],
    "schedule.gamma": ["schedule.name=multistep", "schedule.milestones=[1]"],
    "schedule.milestones": ["schedule.name=multistep"],
    "loss.smoothing": ["loss.name=ce"],
    "augment.crop_ratio": ["augment.crop_scale=[0.5, 1]"],
    "augment.crop_fill": ["augment.crop_padding=2"],
    "mix.": ["mix.prob=1"],
    "model.train": ["model.pretrained=true", "model.tract=null"],
    "model.drop_path_mode": ["model.drop_path=0.5"],
    "model.unfreeze_from": ["model.pretrained=true", "model.tract=null"],
    "model.class_token_std": ["model.args.class_token=true"],
    "data.resident": ["augment.affine=null"],
    "evaluate.": ["ema.decay=0.5"],
}
NEEDS_FIRST = {"optim.first_layer.momentum": ["optim.first_layer.lr=0.1"]}


def limits() -> list[list[str]]:
    """The `--set`s of every number at each limit and every choice, with what they need."""
    cases = []
    for key, values in _leaves(schema()):
        needs = [text for start, texts in NEEDS.items() if key.startswith(start) for text in texts]
        needs += NEEDS_FIRST.get(key, [])
        cases += [[*needs, f"{key}={value}"] for value in values]
    return cases


def _leaves(tree: dict) -> Iterator[tuple[str, list[str]]]:
    def walk(node: dict, key: str) -> Iterator[tuple[str, list[str]]]:
        if "$ref" in node:
            node = tree["$defs"][node["$ref"].rpartition("/")[2]]
        if "properties" in node:
            for name, inner in node["properties"].items():
                yield from walk(inner, f"{key}.{name}" if key else name)
        elif "anyOf" in node:
            for inner in node["anyOf"]:
                yield from walk(inner, key)
        elif values := _values(node, key):
            yield key, values

    own = {"base", "family", "options"}
    root = {"properties": {k: v for k, v in tree["properties"].items() if k not in own}}
    yield from walk(root, "")


def _values(node: dict, key: str) -> list[str]:
    if "enum" in node or "const" in node:
        return [str(value) for value in node.get("enum", [node.get("const")])]
    if node.get("type") == "boolean":
        return ["true", "false"]
    if node.get("type") in ("integer", "number"):
        return [_exact(value) for value in _ends(node)]
    if node.get("type") == "array" and "prefixItems" in node:
        low, high = map(_exact, _ends(node["prefixItems"][0]))
        return [f"[{low}, {low}]", f"[{low}, {high}]", f"[{high}, {high}]"]
    if node.get("type") == "array":
        items = _values(node["items"], key)
        return [f"[{item}]" for item in items] + [f"[{item}, {item}, {item}]" for item in items]
    return []


def _ends(node: dict) -> tuple[float, float]:
    low = node.get("minimum", math.nextafter(node.get("exclusiveMinimum", 0), math.inf))
    high = node.get("maximum")
    if high is None:
        high = node["exclusiveMaximum"]
        high = int(high) - 1 if node["type"] == "integer" else math.nextafter(high, -math.inf)
    return low, high


def _exact(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e20 else repr(float(value))


# ---- mutations -----------------------------------------------------------------------------------

NUMBERS = """
0 -0 1 -1 2 3 7 0.5 -0.5 1e-9 1e-39 1e-320 1e9 1e39 1e200 1e308 1e999 -1e999 2147483648
9223372036854775807 99999999999999999999 1.5 0.999999999 1.0000001 16 64 255 1000000
""".split()  # noqa: SIM905
OTHERS = (
    """
null|true|false|''|x|yes|[]|{}|[1]|[2, 1]|[0, 0]|[1, 1e39]|[0.5, 0.5, 0.5]|[null]|[[1, 2]]|{a: 1}
1e5x|中|"\\u202e"|"\\x00"|auto|[1e-320, 1]|[-1, 1]|[0.1, 0.2, 0.3, 0.4]|!!float nan|!!int 1.5|0x10
""".replace("\n", "|")
    .strip("|")
    .split("|")
)
ARGUMENTS = """
depth num_heads embed_dim patch_size mlp_ratio img_size num_classes in_chans drop_rate
global_pool class_token init_values qkv_bias norm_layer act_layer pos_embed fc_norm
drop_path_rate pos_drop_rate reg_tokens dynamic_img_size no_embed_class pre_norm stem widths
width fc patch_norm weight_init block_fn strict_img_size attn_drop_rate qk_norm
""".split()  # noqa: SIM905
POLICIES = ["rand", "rand-m9", "rand-n99", "rand-m999-inc1", "rand-p0", "rand-mstd999-mmax999", "x"]
MODELS = ["resnet18", "vgg11", "x", "convnext_atto", "vit_tiny_patch16_224"]
TEXTS = {"augment.rand_augment": POLICIES, "model.name": MODELS}


def mutation(number: int, folder: Path) -> tuple[str, list[str]]:
    """A recipe and its `--set`s, drawn from random.Random(number)."""
    rng = random.Random(number)
    name = rng.choice(list(TINY))
    settings = list(TINY[name])
    kind = rng.random()
    if kind < 0.12:  # the text of the tiny recipe, complete with its defaults
        text = explain(load_recipe(name, settings))
        for _ in range(rng.choice([1, 1, 2])):
            text = mutate_text(text, rng)
        mine = folder / "mine.yaml"
        mine.write_bytes(text.encode("utf-8", "surrogatepass"))
        return str(mine), []
    for _ in range(1 if kind < 0.55 else 2 if kind < 0.9 else 3):
        settings.append(_setting(rng))
    return name, settings


def _setting(rng: random.Random) -> str:
    key, values = rng.choice(LEAVES)
    pool = rng.random()
    if pool < 0.12:
        return f"model.args.{rng.choice(ARGUMENTS)}={rng.choice(NUMBERS + OTHERS)}"
    if pool < 0.18:
        key = rng.choice(list(TEXTS))
        return f"{key}={rng.choice(TEXTS[key])}"
    if pool < 0.24:
        return f"{scrambled(key, rng)}={rng.choice(NUMBERS)}"
    if pool < 0.5:
        return f"{key}={rng.choice(values)}"
    if pool < 0.62:
        return f"{key}={rng.choice(OTHERS)}"
    if pool < 0.72:
        pair = sorted(rng.uniform(0, 2) for _ in range(2))
        return f"{key}=[{', '.join(map(repr, pair))}]"
    if pool < 0.84:
        return f"{key}={10 ** rng.uniform(-12, 4):.6g}"
    if pool < 0.9:
        return f"{key}={rng.randrange(1, 40)}"
    return f"{key}={rng.choice(NUMBERS)}"


LEAVES = list(_leaves(schema()))
