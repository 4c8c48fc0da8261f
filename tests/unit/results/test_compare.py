"""tools/compare.py: the tables, the statistics and the picture of runs."""

import subprocess
import sys

import torch
from PIL import Image

from deit_tract.recipe import published
from deit_tract.recipe.describe import explain
from deit_tract.recipe.resolve import load_recipe
from deit_tract.results import plot, runs
from deit_tract.train import checkpoint
from tests.helpers.compare import compare, tables, write

CURVE = "vit_b_ft224_20ep"  # labels 0, 5, 10, 15, 20: 83.448, 83.71, 83.788, 83.826, 83.802


def test_seeds_are_a_group_and_tract_is_compared_seed_by_seed(tmp_path):
    """Differences 1, 2 and 6: mean 3, sd 2.65; t(0.975, 2) = 4.303, so 3 -+ 6.57. The fourth seeds
    have no partner.
    """
    plain = [
        write(
            tmp_path / f"plain{seed}",
            {10: final - 10, 20: final},
            "model.tract=null",
            "expect.top1=60",
            seed=seed,
        )
        for seed, final in enumerate((60.0, 61.0, 62.0, 70.0))
    ]
    ours = [
        write(tmp_path / f"ours{seed}", {10: final - 10, 20: final}, seed=seed)
        for seed, final in ((0, 61.0), (1, 63.0), (2, 68.0), (9, 90.0))
    ]
    done = compare(*ours, *plain)
    assert done.returncode == 0, done.stderr
    mine, base = tables(done.stdout)[1]
    assert (mine["group"], mine["seeds"], mine["n"], mine["top1"], mine["sd"]) == (
        "ours0 +3",
        "0 1 2 9",
        "4",
        "70.50",
        "13.33",
    )
    assert (base["n"], base["top1"], base["sd"], base["expected"], base["difference"]) == (
        ("4", "63.25", "4.57", "60.00", "+3.25")
    )
    assert "ours0 +3 (tract 0.1) minus plain0 +3 (tract -)" in done.stdout
    assert (
        "difference +3.00 (sd 2.65, 95 % t interval -3.57 to +9.57, n = 3, better in 3 of 3): "
        "+1.00 (seed 0), +2.00 (seed 1)" in done.stdout
    )
    # means over seeds 0, 1, 2: 54 and 64 against 61 at the end
    assert (
        "ours0 +3 first reaches 61.00, the final top-1 of plain0 +3, "
        "at epoch 17.0: 3.0 of 20 epochs saved (15 %)" in (done.stdout)
    )
    assert "- epochs saved, seed by seed: 1.0, 2.0, 6.0" in done.stdout
    early, late = tables(done.stdout)[2]
    assert early == {
        "epoch": "10", "without": "51.00 ± 1.00", "with": "54.00 ± 3.61", "difference": "+3.00",
        "95 % interval": "-3.57 to +9.57", "seed by seed": "+1.00 +2.00 +6.00",
    }  # fmt: skip
    assert (late["epoch"], late["without"], late["with"]) == ("20", "61.00 ± 1.00", "64.00 ± 3.61")


def test_many_evaluations_are_thinned_to_a_few_that_end_with_the_last(tmp_path):
    plain = write(
        tmp_path / "plain", {epoch: epoch + 10.0 for epoch in range(1, 41)}, "model.tract=null"
    )
    ours = write(tmp_path / "ours", {epoch: epoch + 9.0 for epoch in range(1, 41) if epoch != 36})
    done = compare(plain, ours)
    rows = tables(done.stdout)[-1]
    assert [row["epoch"] for row in rows] == [
        "3",
        "7",
        "11",
        "15",
        "19",
        "23",
        "27",
        "31",
        "35",
        "40",
    ]
    assert all(row["difference"] == "-1.00" and row["95 % interval"] == "-" for row in rows)
    assert rows[-1]["without"] == "50.00" and "- epochs saved, seed by seed: never" in done.stdout


def test_what_the_means_do_not_count(tmp_path):
    folders = [
        write(tmp_path / "a", {20: 60.0}),
        write(tmp_path / "b", {20: 62.0}, seed=1),
        write(tmp_path / "again", {20: 99.0}, seed=1),
        write(tmp_path / "killed", {10: 10.0}, seed=2, exit=None),
        write(tmp_path / "plain", {20: 50.0}, "model.tract=null", seed=7),
        write(tmp_path / "other", {20: 50.0}, "model.tract=null", "optim.lr=0.5"),
    ]
    done = compare(*folders)
    group = tables(done.stdout)[1][0]
    assert (group["seeds"], group["n"], group["top1"]) == ("0 1", "2", "61.00")
    assert "not counted: again, its seed 1 is there already" in done.stdout
    assert "not counted: killed, it has not finished" in done.stdout
    assert "a +3 (tract 0.1) minus plain (tract -): no seed that both have finished" in done.stdout
    assert done.stdout.count(" minus ") == 1  # "other" has another learning rate too


def test_beside_the_published_curve(tmp_path):
    held = f"expect.published={CURVE}"
    here = write(tmp_path / "here", {1: 83.5, 4: 83.6, 8: 84.0, 10: 83.888, 19: 83.7}, held)
    other = write(tmp_path / "other", {5: 80.0, 10: 81.0}, held, "optim.lr=0.5", exit=None)
    done = compare(here, other, "--plot", tmp_path / "curves.png")
    assert done.returncode == 0, done.stderr
    rows = tables(done.stdout)[-1]
    assert [row["epoch"] for row in rows] == ["0", "5", "10", "15", "20"]
    assert [row["published"] for row in rows] == ["83.45", "83.71", "83.79", "83.83", "83.80"]
    values = ["83.50 +0.05 @1", "83.70 -0.01 ~", "83.89 +0.10", "83.78 -0.04 ~", "83.70 -0.10 @19"]
    assert [row["here"] for row in rows] == values
    assert [row["other"] for row in rows] == ["-", "80.00 -3.71", "81.00 -2.79", "-", "-"]
    assert "README_revenge.md" in done.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_another_published_key_and_final_numbers(tmp_path):
    run = write(tmp_path / "run", {1: 0.2, 100: 63.0}, f"expect.published={CURVE}", exit=None)
    done = compare(run, "--published", "vit_s_800ep")
    assert (
        "TrAct with lambda 0.2, then 50 epochs at 224 px: top1 82.18, top5 95.98 (TrAct, Table 3)"
        in done.stdout
    )
    assert [row["epoch"] for row in tables(done.stdout)[-1]] == ["0", "5", "10", "20", "50", "100"]
    assert CURVE not in done.stdout
    done = compare(run, "--published", "vit_s_400ep", "--plot", tmp_path / "curves.png")
    assert done.returncode == 0 and "- no curve" in done.stdout and len(tables(done.stdout)) == 1


def test_results_of_one_entry_share_its_curve(tmp_path):
    held = f"expect.published={CURVE}"
    folders = [
        write(tmp_path / name, {5: 80.0}, key, lr, exit=None)
        for name, key, lr in (("a", held, "optim.lr=0.5"), ("b", f"{held}/deit3", "optim.lr=0.6"))
    ]
    done = compare(*folders)
    assert done.stdout.count("Published as") == 1
    assert {"a", "b"} < tables(done.stdout)[-1][0].keys()


def test_a_run_that_has_just_begun(tmp_path):
    done = compare(
        write(tmp_path / "run", {}, f"expect.published={CURVE}", exit=None),
        "--plot",
        tmp_path / "curves.png",
    )
    assert done.returncode == 0, done.stderr
    assert "no run has an evaluation yet" in done.stdout


def test_a_mean_says_of_how_many_it_is(tmp_path):
    held = f"expect.published={CURVE}"
    write(tmp_path / "a", {5: 83.0, 10: 84.0}, held, exit=None)
    write(tmp_path / "b", {5: 82.0}, held, seed=1, exit=None)
    rows = tables(compare(tmp_path / "a", tmp_path / "b").stdout)[-1]
    assert [row["a +1"] for row in rows] == ["-", "82.50 -1.21", "84.00 +0.21 n=1"]


def test_when_a_curve_reaches_a_value():
    points = [(10.0, 50.0), (20.0, 60.0), (30.0, 58.0), (40.0, 70.0)]
    assert [runs.reached(points, target) for target in (40, 55, 60, 64, 71)] == [
        10,
        15,
        20,
        35,
        None,
    ]
    assert runs.reached([], 1) is None


def test_a_curve_between_its_points():
    points = [(2.0, 10.0), (6.0, 30.0)]
    assert runs.at(points, 2, 1) == (10.0, "") and runs.at(points, 5, 1) == (25.0, "~")
    assert runs.at(points, 1, 1) == (10.0, "@2") and runs.at(points, 7, 1) == (30.0, "@6")
    assert runs.at(points, 0.5, 1) is runs.at(points, 7.5, 1) is runs.at([], 1, 1) is None
    assert runs.mean_curve([points, [(6.0, 50.0), (7.0, 0.0)]]) == [(6.0, 40.0)]


def test_runs_of_folders_with_one_name_are_told_apart(tmp_path):
    folders = [write(tmp_path / name / "seed0", {1: 1.0}) for name in ("a", "b")]
    assert [run.name for run in runs.read_runs(folders)] == ["a/seed0", "b/seed0"]
    assert [run.name for run in runs.read_runs(folders[:1])] == ["seed0"]


def test_the_curve_used_here_is_the_published():
    assert published.find(CURVE).top1 == [83.448, 83.71, 83.788, 83.826, 83.802]


# ---- what differs, what is expected, how a run has ended -----------------------------------------


def test_a_column_for_every_key_that_differs(tmp_path):
    one = write(tmp_path / "one", {1: 50.0}, "optim.lr=0.5", "data.workers=1")
    two = write(tmp_path / "two", {1: 50.0}, "model.args.depth=2", seed=1)
    rows = tables(compare(one, two).stdout)[0]
    differing = {key for key in rows[0] if "." in key}
    assert differing == {"optim.lr", "data.workers", "model.args.depth"}
    assert [row["optim.lr"] for row in rows] == ["0.5", "0.008"]
    assert [row["model.args.depth"] for row in rows] == ["3", "2"]
    other = write(tmp_path / "other", {1: 50.0}, "ema.decay=0.9", "augment.repeats=1", "mix.prob=0")
    found = tables(compare(one, two, other).stdout)
    assert "optim.lr" in found[0][0] and len(found) == 1
    many = write(tmp_path / "many", {1: 50.0}, "optim.clip_grad=2.0", "optim.weight_decay=0.07")
    first, second = tables(compare(one, two, other, many).stdout)
    assert "optim.lr" not in first[0]
    assert {"key": "optim.lr", "one": "0.5", "two": "0.008", "other": "0.008", "many": "0.008"} in (
        second
    )


def test_a_changed_experiment_expects_nothing(tmp_path):
    """Of the recipe as it is, with a free key, with another learning rate, and based on it."""
    child = tmp_path / "child.yaml"
    child.write_text("base: quickstart_baseline\noptim: {lr: 0.001}\n")
    own = tmp_path / "own.yaml"
    own.write_text("base: quickstart_baseline\noptim: {lr: 0.002}\nexpect: {top1: 90}\n")
    for name, recipe, overrides in (
        ("same", "quickstart_baseline", ["seed=3"]),
        ("free", "quickstart_baseline", ["data.workers=2", "log.every_steps=7"]),
        ("changed", "quickstart_baseline", ["optim.lr=0.5"]),
        ("child", str(child), []),
        ("own", str(own), []),
    ):
        folder = write(tmp_path / name, {1: 50.0})
        (folder / "recipe.yaml").write_text(explain(load_recipe(recipe, overrides)))
    names = ("same", "free", "changed", "child", "own")
    read = {run.name: run for run in runs.read_runs([tmp_path / name for name in names])}
    changed = {name: run.changed for name, run in read.items()}
    lr = ["optim.lr"]
    assert changed == {"same": [], "free": [], "changed": lr, "child": lr, "own": []}
    done = compare(tmp_path / "same", tmp_path / "changed")
    assert [row["expected"] for row in tables(done.stdout)[1]] == ["97.60", "-"]
    assert "nothing expected: changed, its recipe is changed (optim.lr)" in done.stdout


def test_running_and_killed_are_told_apart_by_the_lock(tmp_path):
    folders = {
        name: write(tmp_path / name, {1: 50.0}, exit=exit)
        for name, exit in (
            ("unknown", None),
            ("killed", None),
            ("running", None),
            ("again", "preempted"),
            ("stopped", f"stopped: {'x' * 300}"),
            ("done", "finished"),
        )
    }
    for name in ("killed", "running", "again", "stopped", "done"):
        (folders[name] / ".lock").touch()
    holding = "import fcntl, sys; files = [open(name, 'a') for name in sys.argv[1:]]\n"
    holding += "[fcntl.lockf(file, fcntl.LOCK_EX) for file in files]; print(flush=True); input()"
    locked = [str(folders[name] / ".lock") for name in ("running", "again", "done")]
    command = [sys.executable, "-c", holding, *locked]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        rows = tables(compare(*folders.values()).stdout)[0]
        holder.stdin.close()
    exits = {row["run"]: row["exit"] for row in rows}
    assert exits.pop("stopped") == f"stopped: {'x' * 31}..."
    assert exits == {
        "unknown": "running or killed",
        "killed": "killed",
        "running": "running",
        "again": "running",
        "done": "finished",
    }


def test_panels_and_as_many_colours_as_runs(tmp_path):
    folders = [write(tmp_path / f"lr{n}", {1: 50.0 + n}, f"optim.lr=0.{n + 1}") for n in range(7)]
    file = tmp_path / "curves.png"
    done = compare(*folders, "--plot", file, "--panels", "loss")
    assert done.returncode == 0, done.stderr
    assert Image.open(file).size[0] == 3 * 5.5 * 120  # three panels of 5.5 inches
    done = compare(*folders, "--plot", file, "--panels", "los")
    assert done.returncode == 2 and "has logged 'los'; did you mean 'loss'?" in done.stderr
    assert all(len(set(plot.colors_for(count))) == count for count in (1, 6, 7, 40))


# ---- bit by bit ----------------------------------------------------------------------------------


def test_bit_by_bit(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.tensor([[1.0, float("nan")], [0.0, 3.0]])}
    for name in ("one", "two"):
        run = write(tmp_path / name, {1: 50.0, 2: 60.0})
        checkpoint.save(run / "checkpoints", 20, {"model": tensors, "ema": tensors}, {}, {}, 1)
    one, two = tmp_path / "one", tmp_path / "two"
    done = compare("--bitwise", one, two)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            "logged numbers: equal, 4 records",
            "weights at step 20: equal, 8 numbers",
            "ema weights at step 20: equal, 8 numbers",
        ],
    )
    other = {"a": tensors["a"], "b": tensors["b"] * torch.tensor([1.0, -1.0]).unsqueeze(1)}
    checkpoint.save(two / "checkpoints", 20, {"model": tensors, "ema": other}, {}, {}, 1)
    metrics = two / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("60.0", "60.000001"))
    done = compare("--bitwise", one, two)
    assert done.returncode == 1
    first, second, third = done.stdout.splitlines()
    assert first == "logged numbers: differ, first at step 20: top1 60.0 and 60.000001"
    assert second.endswith("equal, 8 numbers")
    assert third == (
        "ema weights at step 20: differ, first in b[1, 0]: 0.0 and -0.0 (2 of 4 numbers)"
    )
    checkpoint.save(two / "checkpoints", 30, {"model": tensors}, {}, {}, 1)
    done = compare("--bitwise", one, two)
    assert done.returncode == 2 and "they have 20 and 30" in done.stderr
    assert "--bitwise: 1 runs; give two" in compare("--bitwise", one).stderr
