"""What N GPUs change: the counts against the run's own, docs/scaling.md against the command."""

import math
import re
from functools import cache

import pytest
import torch

from deit_tract import tract
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.plan import scaling
from deit_tract.plan.cost import CORE_RATE, core_rate
from deit_tract.plan.plan import Plan, gpu_rates, hours, make_plan
from deit_tract.recipe.resolve import load_recipe
from tests.helpers import ROOT
from tests.helpers.cli import call

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
GPU = "H100 SXM"  # of the page's tables


@cache
def planned(name: str, gpus: int | None, *settings: str) -> Plan:
    return make_plan(load_recipe(name, settings), ROOT / "runs" / "nowhere", gpus)


def times(plan: Plan, gpus: int, rate: float, eval_cost: float) -> list[float]:
    return [*hours(plan, rate, gpus, eval_cost), plan.saves * plan.checkpoint / 1e9 / 3600]


def row(name: str, gpus: int, *settings: str) -> str:
    """A line of the page's tables: checkpoints at 1 GB/s."""
    plan = planned(name, gpus, *settings)
    rate = gpu_rates(plan)[GPU]
    parts = times(plan, gpus, rate, plan.cost.forward / plan.cost.training)
    lanes, lane_size = max(plan.shares[gpus]), plan.recipe.batch.lane_size
    speed = scaling.images_per_second(plan, gpus, rate)
    cells = [
        gpus,
        math.ceil(gpus / 8),
        " ".join(f"`{setting}`" for setting in settings),
        f"{lanes} x {lane_size}",
        f"{1e3 * lanes * lane_size / rate:.1f}",
        f"{speed:,.0f}",
        f"{math.ceil(speed / math.ceil(gpus / 8) / CORE_RATE)}",
        f"{speed * scaling.IMAGE_BYTES / 1e9:.1f}",
        f"{sum(parts):.3g}",
        f"{parts[-1] / sum(parts):.1%}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def rows() -> list[tuple[str, str]]:
    """(recipe, line) of the page's tables."""
    found, name = [], None
    for line in PAGE.splitlines():
        heading = re.fullmatch(r"### `(\w+)`", line)
        name = heading.group(1) if heading else name
        if re.match(r"\| \d", line):
            found.append((name, line))
    return found


def test_the_page_has_its_tables():
    assert {name for name, _ in rows()} == {"vit_s_800ep_tract", "vit_b_800ep_tract"}
    assert len(rows()) == 16


@pytest.mark.parametrize(("name", "line"), rows(), ids=lambda text: text[:18].strip("| "))
def test_the_page_has_what_is_computed(name, line):
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert line == row(name, int(cells[0]), *re.findall(r"`([^`]+)`", cells[2]))


def test_the_pages_outputs_are_the_commands(capsys, monkeypatch):
    blocks = re.findall(r"```\n\$ python train\.py (.+)\n((?:.*\n)+?)```", PAGE)
    assert len(blocks) == 2
    for arguments, expected in blocks:
        code, out, err = call(capsys, monkeypatch, *arguments.split())
        assert out + "".join(f"{line}\n" for line in err) == expected
        assert code == ("error:" in expected) * 2


def test_the_pages_sentences_hold_its_tables():
    plan = planned("vit_s_800ep_tract", 8)
    workers = sum(times(plan, 8, 10 * CORE_RATE, 1.0))
    gpus = sum(times(plan, 8, gpu_rates(plan)[GPU], plan.cost.forward / plan.cost.training))
    assert f"8 H100 need {workers:.3g} h instead of {gpus:.3g} h" in PAGE
    fast = core_rate(planned("vit_s_800ep_tract", 8, "data.pipeline=fast").recipe)
    one = gpu_rates(plan)[GPU]
    assert f"{math.ceil(one / CORE_RATE)} cores prepare them" in PAGE
    assert f"{fast / CORE_RATE:.1f} times as many images" in PAGE
    assert f"so that one H100 asks for {math.ceil(one / fast)} cores" in PAGE
    larger = planned("vit_s_800ep_tract", 512, "batch.lanes=512", "batch.size=131072")
    assert larger.stream.steps_per_epoch == 9 and "9 per epoch at 131,072" in PAGE


# ---- the rules -----------------------------------------------------------------------------------


def test_the_bytes_are_those_of_real_gradients():
    recipe = load_recipe("quickstart", ["model.tract_gram=batch"])
    net = build_model(recipe)
    images = torch.zeros(2, 1, 8, 8)
    draw_drop_path([m for m in net.modules() if isinstance(m, DropPath)], 2, 0, images.device)
    net(images).sum().backward()
    gradients, gram = scaling.step_bytes(planned("quickstart", 2, "model.tract_gram=batch"))
    assert gradients == sum(p.grad.numel() * p.grad.element_size() for p in net.parameters())
    [(_, layer)] = tract.find(net)
    assert gram == layer.gram_sum.grad.numel() * layer.gram_sum.grad.element_size()
    assert scaling.step_bytes(planned("quickstart", 2))[1] == 0


def test_lanes_are_shared_as_the_run_shares_them():
    three = planned("vit_s_800ep_tract", 3)
    assert three.shares == {3: [3, 3, 2]}
    waiting = "2 or 3 of them per step: 11% of the GPUs' time is spent waiting"
    assert waiting in scaling.show_scaled(three, 3)
    for gpus, nodes in ((8, "1 node,"), (9, "2 nodes,"), (16, "2 nodes,")):
        plan = planned("vit_s_800ep_tract", gpus, "batch.lanes=16")
        assert f"{gpus} on {nodes}" in scaling.show_scaled(plan, gpus)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--plan", "--gpus", "0"], "--gpus: 0 is out of range; give 1 to 65,536"),
        (["--plan", "--gpus", "9" * 30], f"--gpus: {'9' * 30} is out of range; give 1 to 65,536"),
        (
            ["--plan", "--gpus", "x"],
            "command line: argument --gpus: invalid int value: 'x'; see --help",
        ),
        (
            ["--gpus", "2"],
            "command line: --gpus goes with --plan; the launcher sets how many processes train",
        ),
    ],
)
def test_a_wrong_number_is_one_line(capsys, monkeypatch, arguments, error):
    code, _, lines = call(capsys, monkeypatch, "--recipe", "quickstart", *arguments)
    assert (code, lines[-1]) == (2, f"error: {error}")


def test_what_is_unknown_is_left_out():
    text = scaling.show_scaled(planned("folder_vit_ti", 2), 2)
    assert "unknown number of steps" in text and "\nhours" not in text and "MB/s" not in text
    text = scaling.show_scaled(planned("quickstart", 2), 2)
    assert "per node" not in text, "the digits are not read from a disk"
