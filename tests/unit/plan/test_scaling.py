"""What N GPUs change: the counts against the run's own, the times against their rules,
docs/scaling.md against both.
"""

import math
import re
from functools import cache

import pytest
import torch

from deit_tract import tract
from deit_tract.common.errors import UserError
from deit_tract.models.build import build_model
from deit_tract.models.drop_path import DropPath, draw_drop_path
from deit_tract.plan import scaling
from deit_tract.plan.gpus import Gpu
from deit_tract.plan.plan import CORE_RATE, Plan, hours, make_plan
from deit_tract.plan.scaling import BETWEEN, DISKS, INSIDE
from deit_tract.plan.text import core_rate
from deit_tract.recipe.resolve import load_recipe
from tests.helpers import ROOT
from tests.helpers.cli import call

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
GPU = "H100 SXM"  # of the page's tables


@cache
def planned(name: str, *settings: str) -> Plan:
    return make_plan(load_recipe(name, settings), ROOT / "runs" / "nowhere")


def scaled(name: str, gpus: int, *settings: str) -> scaling.ScaledPlan:
    return scaling.scale_plan(planned(name, *settings), gpus)


def row(name: str, gpus: int, *settings: str) -> str:
    """A line of the page's tables: over the first link, checkpoints at 1 GB/s."""
    scale = scaled(name, gpus, *settings)
    rate, link = scaling.rates(scale)[GPU], next(iter(scale.links.values()), None)
    parts = scaling.hours(
        scale, rate, link, DISKS["1 GB/s"], scale.plan.cost.forward / scale.plan.cost.training
    )
    speed, alone = scaling.images_per_second(scale, rate, link), scaling.rates(scaled(name, 1))[GPU]
    wait = scaling.all_reduce(scale, link) if link else 0.0
    cells = [
        gpus,
        scale.nodes,
        " ".join(f"`{setting}`" for setting in settings),
        f"{scale.lanes[0]} x {scale.plan.recipe.batch.lane_size}",
        f"{1e3 * scale.images / rate:.1f}",
        f"{1e3 * wait:.2f}",
        f"{speed:,.0f}",
        f"{speed / (gpus * alone):.0%}",
        f"{math.ceil(speed / scale.nodes / CORE_RATE)}",
        f"{speed * scaling.IMAGE_BYTES / 1e9:.1f}",
        f"{sum(parts.values()):.3g}",
        f"{parts['saving'] / sum(parts.values()):.1%}",
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
    counts = {
        name: [int(line.split("|")[1]) for other, line in rows() if other == name]
        for name, _ in rows()
    }
    assert set(counts) == {"vit_s_800ep_tract", "vit_b_800ep_tract"}
    assert all({1, 2, 4, 8, 16, 64, 512} <= set(gpus) for gpus in counts.values())


@pytest.mark.parametrize(("name", "line"), rows(), ids=lambda text: text[:18].strip("| "))
def test_the_page_says_what_is_computed(name, line):
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert line == row(name, int(cells[0]), *re.findall(r"`([^`]+)`", cells[2]))


def test_the_pages_outputs_are_the_commands(capsys, monkeypatch):
    blocks = re.findall(r"```\n\$ python train\.py (.+)\n((?:.*\n)+?)```", PAGE)
    assert len(blocks) >= 2
    for arguments, expected in blocks:
        code, out, err = call(capsys, monkeypatch, *arguments.split())
        assert (
            out + "".join(f"{line}\n" for line in err) == expected
            and code == ("error:" in expected) * 2
        )


def test_the_pages_sentences_hold_its_tables():
    scale = scaled("vit_s_800ep_tract", 8)
    link, disk = INSIDE["NVLink 4"], DISKS["1 GB/s"]
    workers = sum(scaling.hours(scale, 10 * CORE_RATE, link, disk, 1.0).values())
    looking = scale.plan.cost.forward / scale.plan.cost.training
    gpus = sum(scaling.hours(scale, scaling.rates(scale)[GPU], link, disk, looking).values())
    assert f"8 H100 need {workers:.3g} h in place of {gpus:.3g} h" in PAGE
    fast = core_rate(planned("vit_s_800ep_tract", "data.pipeline=fast").recipe)
    one = scaling.rates(scaled("vit_s_800ep_tract", 1))[GPU]
    assert f"{math.ceil(one / CORE_RATE)} cores prepare them" in PAGE
    more = f"{fast / CORE_RATE:.1f} times as many images"
    more += f", so that one H100 asks for {math.ceil(one / fast)} cores"
    assert more in PAGE
    speeds = {}
    for lanes in (16, 32, 64):
        more = scaled("vit_s_800ep_tract", lanes, f"batch.lanes={lanes}")
        speeds[lanes] = scaling.images_per_second(
            more, scaling.rates(more)[GPU], BETWEEN["8x400Gb IB"]
        )
    assert "ViT-S gains up to 32 GPUs" in PAGE and speeds[16] < speeds[32] > speeds[64]
    small, base = planned("vit_s_800ep_tract").cost, planned("vit_b_800ep_tract").cost
    arithmetic, gradients = base.training / small.training, base.parameters / small.parameters
    assert f"{arithmetic:.1f} times the arithmetic and {gradients:.1f} times the gradients" in PAGE
    assert (
        planned("vit_s_800ep_tract", "batch.lanes=512", "batch.size=131072").stream.steps_per_epoch
        == 9
    )
    assert "9 an epoch at 131,072" in PAGE


# ---- the rules -----------------------------------------------------------------------------------


def test_the_bytes_are_those_of_real_gradients():
    recipe = load_recipe("quickstart", ["model.tract_gram=batch"])
    net = build_model(recipe)
    images = torch.zeros(2, 1, 8, 8)
    draw_drop_path([m for m in net.modules() if isinstance(m, DropPath)], 2, 0, images.device)
    net(images).sum().backward()
    scale = scaled("quickstart", 2, "model.tract_gram=batch")
    assert scale.gradients == sum(p.grad.numel() * p.grad.element_size() for p in net.parameters())
    [(_, layer)] = tract.find(net)
    assert scale.gram == layer.gram_sum.grad.numel() * layer.gram_sum.grad.element_size()
    assert (
        scaled("quickstart", 2).gram == 0
        and scaled("quickstart", 2, "model.tract=null").plan.cost.gram == 0
    )


def test_lanes_are_shared_as_the_run_shares_them():
    assert (
        scaled("vit_s_800ep_tract", 3).lanes == [3, 3, 2]
        and scaled("vit_s_800ep_tract", 8).lanes == [1] * 8
    )
    assert "2 or 3 of them a step: 11% of the GPUs' time is spent waiting" in scaling.show_scaled(
        scaled("vit_s_800ep_tract", 3)
    )
    assert [scaled("vit_s_800ep_tract", n, "batch.lanes=16").nodes for n in (8, 9, 16)] == [1, 2, 2]


def test_hours_are_the_plans_where_nothing_waits():
    made = planned("vit_s_800ep_tract")
    for gpus in (1, 2, 4, 8):
        parts = scaling.hours(scaling.scale_plan(made, gpus), 1000.0, None, math.inf, 0.3)
        assert sum(parts.values()) == pytest.approx(hours(made, 1000.0, gpus, 0.3))
        assert parts["all-reduce"] == parts["saving"] == 0


def test_a_ring_sends_its_bytes_and_takes_its_hops():
    scale = scaled("vit_s_800ep_tract", 8)
    calls = 1 + math.ceil((4 * 22_059_496 - 2**20) / (25 * 2**20))
    by_hand = 2 * 7 / 8 * 4 * 22_059_496 / (0.8 * 450e9) + calls * 14 * 3.4e-6
    assert scaling.all_reduce(scale, INSIDE["NVLink 4"]) == pytest.approx(by_hand)
    two = scaled("vit_s_800ep_tract", 16, "batch.lanes=16")
    tree = 2 * 4 * 22_059_496 / (0.92 * 0.8 * 50e9) + calls * 2 * (7 * 4e-6 + 14e-6)
    ring = 2 * 15 / 16 * 4 * 22_059_496 / (0.8 * 50e9) + calls * 2 * (14 * 3.4e-6 + 14e-6)
    assert scaling.all_reduce(two, BETWEEN["1x400Gb IB"]) == pytest.approx(min(ring, tree))
    assert scaling.all_reduce(scaled("vit_s_800ep_tract", 1), INSIDE["NVLink 4"]) == 0
    summed = scaled("vit_s_800ep_tract", 8, "model.tract_gram=batch")
    more = 2 * 7 / 8 * 8 * 768**2 / (0.8 * 450e9) + 14 * 3.4e-6
    assert scaling.all_reduce(summed, INSIDE["NVLink 4"]) == pytest.approx(by_hand + more)


def test_more_gpus_than_lanes_names_the_choices():
    with pytest.raises(UserError) as error:
        scaled("vit_s_800ep_tract", 64)
    assert str(error.value) == (
        "--gpus: 64 processes for batch.lanes 8; "
        "start at most 8 (1, 2, 4, 8: equal shares), or change the experiment: "
        "--set batch.lanes=64 (lanes of 32 images) or --set batch.lanes=64 --set "
        "batch.size=16384 (a larger batch)"
    )
    for settings in (["batch.lanes=64"], ["batch.lanes=64", "batch.size=16384"]):
        assert scaled("vit_s_800ep_tract", 64, *settings).lanes == [1] * 64
    with pytest.raises(UserError, match=r"or change the experiment: --set batch\.lanes=24 --set"):
        scaled("vit_s_800ep_tract", 24)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--plan", "--gpus", "0"], "--gpus: 0 is no number of GPUs; give 1 to 65,536"),
        (
            ["--plan", "--gpus", "9" * 30],
            f"--gpus: {'9' * 30} is no number of GPUs; give 1 to 65,536",
        ),
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
    text = scaling.show_scaled(scaled("folder_vit_ti", 2))
    assert "unknown number of steps" in text and "\nhours" not in text and "MB/s" not in text
    assert "a node" not in scaling.show_scaled(scaled("quickstart", 2)), (
        "the digits are not read from a disk"
    )


def test_gpus_that_cannot_hold_a_lane_are_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "GPUS", {"small": Gpu(100, 10, 4), "large": Gpu(100, 10, 80)})
    assert set(scaling.rates(scaled("vit_s_800ep_tract", 1))) == {"large"}
