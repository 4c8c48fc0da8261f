"""Broken files of weights, for `tests.helpers.hostile`."""

import math
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from tests.helpers.hostile import Count, harm_bytes, judge, newest
from tests.helpers.safety import FORMS, malicious


def odd_tensors(good: torch.Tensor) -> dict[str, object]:
    """What may be in the place of a tensor of floats, by a name; none of it is right."""
    last = good.flatten()[-1:].clone()
    return {
        "list": good.tolist(),
        "none": None,
        "text": "x",
        "nested": {"weight": good},
        "0-D": torch.tensor(1.0),
        "1-D": torch.ones(7),
        "empty": torch.empty(0),
        "more dimensions": good[None, None],
        "sparse": good.to_sparse(),
        "quantised": torch.quantize_per_tensor(good.float(), 0.1, 0, torch.qint8),
        "meta": good.to("meta"),
        "complex": good.to(torch.complex64),
        "integer": good.to(torch.int32),
        "bool": good > 0,
        "float8": good.to(torch.float8_e4m3fn),
        "NaN": torch.where(torch.arange(good.numel()).view(good.shape) == 0, math.nan, good),
        "infinity": torch.full_like(good, math.inf),
        "expanded": last.expand(good.numel(), 10**9),
        "huge": last.expand(10**6, 10**6),
        "same shape of one number": last.view([1] * good.ndim).expand(good.shape),
    }


def harm_weights(good: dict, path: Path, executed: Path, rng: random.Random) -> tuple[str, bool]:
    """Write a file of broken weights. Returns how they are broken, and whether for certain."""
    state = dict(good)
    key = rng.choice(list(state))
    kind = rng.choice(
        ["tensor"] * 5 + ["name", "wrap", "bytes", "bytes", "keys", "payload", "plain"]
    )
    if kind == "tensor":
        if "pos_embed" in state and rng.random() < 0.3:
            key = "pos_embed"
        odd = odd_tensors(state[key])
        how = rng.choice(list(odd))
        sure = how != "same shape of one number" or state[key].numel() > 1
        state[key] = odd[how]
        torch.save(rng.choice([state, {"model": state}, {"state_dict": state}]), path)
        return f"{key} {how}", sure
    if kind == "name":
        name = rng.choice([1, None, 1.5, ("a", "b"), b"x", True])
        state[name] = state.pop(key)
        torch.save(rng.choice([state, {"model": state}]), path)
        return f"name {name!r}", True
    if kind == "wrap":
        inner = rng.choice([[], [1], list(state.values()), None, "x", {}, 5, state[key], ()])
        torch.save(rng.choice([{"model": inner}, {"state_dict": inner}, inner]), path)
        return f"of type {type(inner).__name__}", True
    if kind == "keys":
        how = rng.choice(["gone", "more", "renamed", "twice"])
        if how in ("gone", "renamed"):
            taken = state.pop(key)
        if how == "renamed":
            state[f"module.{key}"] = taken
        if how == "more":
            state["more"] = torch.ones(2)
        if how == "twice":
            state |= {"blocks.0.gamma_1": torch.ones(2), "blocks.0.ls1.gamma": torch.ones(2)}
        torch.save(state, path)
        return f"{key} {how}", True
    if kind == "payload":
        form = rng.choice(FORMS)
        malicious(path, executed, form)
        return f"payload, {form}", True
    if kind == "plain":
        state[key] = state[key].to(rng.choice([torch.float64, torch.float32]))
        torch.save(rng.choice([state, {"model": state, "epoch": 3}]), path)
        return "nothing", False
    if path.suffix == ".safetensors":
        path.write_bytes(serialize(state))
    else:
        torch.save(state, path)
    how, sure = harm_bytes(path, rng)
    return how, sure and "zeros" not in how


def weights(made: Path, overrides: list[str], place: Path, cases: range, count: Count) -> None:
    """Give broken files of weights to evaluate and finetune."""
    good = load_file(newest(made) / "model.safetensors")
    executed = place / "executed"
    for i in cases:
        rng = random.Random(f"weights {i}")
        shutil.rmtree(place / "w", ignore_errors=True)
        (place / "w").mkdir()
        path = place / "w" / f"w{rng.choice(['.pth', '.safetensors', '.bin'])}"
        how, sure = harm_weights(good, path, executed, rng)
        recipe = str(made / "recipe.yaml")
        tool = rng.choice(["evaluate", "evaluate", "finetune"])
        arguments = [str(path), "--recipe", recipe, "--workers", "0"]
        if tool == "evaluate" and rng.random() < 0.2:
            arguments[1:3] = ["--model", "test_vit2"]
        if tool == "finetune":
            sets = [word for one in overrides for word in ("--set", one)]
            output = str(place / "w" / "run")
            arguments = [
                "--recipe",
                "quickstart",
                "--checkpoint",
                str(path),
                "--output",
                output,
                *sets,
            ]
        sure = sure and (path.suffix != ".safetensors" or path.exists())
        judge(count, f"weights {i}, {path.suffix}, {how}", tool, arguments, sure)
        if executed.exists():
            count.accepted.append(f"weights {i}: a payload was executed")
            shutil.rmtree(executed)
