"""Sets of runs: what they hold, how far they are, and their tables."""

import csv
import fcntl
import json

import pytest

from deit_tract.common.errors import UserError, UserErrors
from deit_tract.recipe import published
from deit_tract.results.sweep.definition import (
    FILE,
    Definition,
    make_sweep,
    parse_seeds,
    read_definitions,
)
from deit_tract.results.sweep.report import (
    Report,
    latex,
    make_report,
    report_text,
    statistics_text,
    write_csv,
)
from deit_tract.results.sweep.state import ENDED, LOG, read_state, status_text
from tests.helpers.sweep import make, write_sets

SETS = read_definitions()


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_sets_name_recipes_rows_and_columns_that_exist(name, tmp_path):
    sweep = make_sweep(name, SETS[name].model_copy(update={"seeds": [0]}), tmp_path)
    shown = [member for member in sweep.members if member.shown]
    assert shown and len({member.folder for member in sweep.members}) == len(sweep.members)
    assert len({(member.row, member.column) for member in shown}) == len(shown)


def test_table_1_has_its_540_runs_and_a_published_number_in_each_cell(tmp_path):
    sweep = make_sweep("table1", SETS["table1"], tmp_path)
    assert len(sweep.members) == 36 * 3 * 5
    report = make_report(sweep, "top1")
    assert len(report.cells) == 36 * 3
    assert all(cell.published for cell in report.cells.values())


def test_a_varied_value_has_the_published_number_of_the_recipe_with_that_value(tmp_path):
    report = make_report(make_sweep("table2", SETS["table2"], tmp_path), "top1")
    numbers = {column: report.cells["30ep", column].published for column in report.sweep.columns}
    assert numbers == {"null": 71.96, "0.05": None, "0.1": 73.48, "0.2": None}


def test_runs_start_from_the_runs_of_the_same_seed_that_the_set_names(tmp_path):
    sweep = make_sweep("table3", SETS["table3"], tmp_path)
    sources = {str(m.folder.relative_to(tmp_path)): m.source for m in sweep.members if m.source}
    assert sources["vit_s_ft224,from=vit_s_800ep/seed0"] == tmp_path / "vit_s_800ep" / "seed0"
    assert len(sources) == 6
    assert sweep.rows == ["ViT-S, 400 epochs", "ViT-S, 800 epochs", "ViT-B, 400 epochs"]


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("0-2", [0, 1, 2]), ("1,4-5", [1, 4, 5]), (7, [7])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipes": ["quickstrat"]}, "did you mean 'quickstart'?"),
        ({"recipes": ["nothing_*"]}, "no recipe matches 'nothing_*'"),
        ({"recipes": ["quickstart"], "rows": "net"}, "'net' tells nothing of quickstart"),
        ({"recipes": ["quickstart"], "columns": {"a": "x*"}}, "no label is for quickstart"),
        ({"recipes": ["quickstart"], "against": "200ep"}, "no column is called '200ep'"),
        ({"recipes": ["quickstart"], "vary": {"optim.lrr": [1]}}, "did you mean 'lr'?"),
        ({"recipes": ["quickstart"], "vary": {"about": ["a/b", "a b"]}}, "share the folder"),
        ({"recipes": ["quickstart"], "checkpoint": {"q*": "vit_s_800ep"}}, "not in the set"),
        ({"recipes": ["quickstart"], "seeds": "0-20001"}, "more than 20,000 seeds"),
    ],
)
def test_mistakes_are_one_line(values, message, tmp_path):
    with pytest.raises((UserError, ValueError)) as caught:
        make_sweep("set", Definition.model_validate(values), tmp_path)
    assert message in str(caught.value)


def test_all_mistakes_of_a_file_are_reported_with_its_name(tmp_path):
    file = write_sets(tmp_path / "sets.yaml", one={"recipe": ["a"]}, two=3)
    with pytest.raises(UserErrors) as caught:
        read_definitions(file)
    assert "one: no such key 'recipe'; did you mean 'recipes'?" in str(caught.value)
    assert "'two' must be a section" in str(caught.value)
    assert "sweeps.yaml" in str(FILE)


# ---- state ---------------------------------------------------------------------------------------


def finish(member, top1: float, seconds: float = 10.0, end: str = "finished") -> None:
    member.folder.mkdir(parents=True, exist_ok=True)
    values = {"exit": end, "steps": 4, "seconds": seconds, "final": {"top1": top1}}
    (member.folder / "summary.json").write_text(json.dumps(values))


def test_a_runs_state_is_what_its_folder_tells(tmp_path):
    sweep = make(tmp_path, seeds="0-6")
    done, stopped, refused, killed, saved, fresh, busy = sweep.members
    finish(done, 50)
    finish(stopped, 0, end="stopped: the loss is not finite at step 3")
    finish(saved, 0, end="preempted")
    for member, text in (
        (refused, f"error: data: not there\n{ENDED}2\n"),
        (killed, f"step 3\n{ENDED}-9\n"),
        (busy, f"error: once\n{ENDED}2\n"),
    ):
        member.folder.mkdir(parents=True)
        (member.folder / LOG).write_text(text)
    for member in (killed, saved):
        (member.folder / "checkpoints" / "step_00000002").mkdir(parents=True)
    states = [read_state(member) for member in (done, stopped, refused, killed, saved, fresh)]
    assert [state.kind for state in states] == [
        "finished", "failed", "failed", "saved", "saved", "waiting"
    ]  # fmt: skip
    assert states[1].reason == "stopped: the loss is not finite at step 3"
    assert states[2].reason == "error: data: not there"
    assert states[3].step == 2
    text = status_text(sweep, {m.folder: read_state(m) for m in sweep.members})
    assert f"failed: {refused.folder}: error: data: not there" in text


def test_a_broken_summary_is_a_failure_of_its_run_only(tmp_path):
    sweep = make(tmp_path, seeds="0-1")
    broken, done = sweep.members
    finish(done, 50)
    finish(broken, 50)
    (broken.folder / "summary.json").write_text('{"exit": ')
    states = [read_state(member) for member in sweep.members]
    assert [state.kind for state in states] == ["failed", "finished"]
    assert "summary.json" in states[0].reason


def test_a_run_that_starts_from_another_waits_for_its_end(tmp_path):
    sweep = make(
        tmp_path, recipes=["quickstart", "quickstart_baseline"], seeds=0,
        checkpoint={"quickstart_baseline": "quickstart"},
    )  # fmt: skip
    source, member = sweep.members
    assert read_state(member).kind == "blocked"
    finish(source, 50)
    assert read_state(member).kind == "waiting"
    assert member.checkpoint == str(source.folder)


def test_a_locked_folder_is_running(tmp_path):
    """POSIX locks are a process's own, so another one has to hold it."""
    import multiprocessing

    (member,) = make(tmp_path, seeds=0).members
    member.folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()

    def hold():
        with open(member.folder / ".lock", "w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            held.set()
            end.wait(30)

    process = context.Process(target=hold)
    process.start()
    assert held.wait(30)
    assert read_state(member).kind == "running"
    end.set()
    process.join()
    assert read_state(member).kind == "waiting"


# ---- tables --------------------------------------------------------------------------------------


def published_report(tmp_path, arm: str, metric: str) -> Report:
    """Table 1 with the published means in place of runs of one seed."""
    definition = SETS["table1"].model_copy(update={"seeds": [0], "metrics": [metric]})
    report = make_report(make_sweep("table1", definition, tmp_path), metric)
    for cell in report.cells.values():
        cell.scores = {0: cell.published}
    return report


@pytest.mark.parametrize(
    ("metric", "arm", "expected"),
    [
        ("top1", "200 epochs, TrAct", "+0.487 points over 36 rows, better in 33 of 36 (95 % t "
         "interval +0.356 to +0.618, t = 7.56, p = 7e-09)"),
        ("top5", "200 epochs, TrAct", "+0.229 points over 36 rows, better in 34 of 36 (95 % t "
         "interval +0.167 to +0.292, t = 7.49, p = 9e-09)"),
        ("top1", "133 epochs, TrAct", "+0.039 points"),
        ("top5", "133 epochs, TrAct", "(95 % t interval +0.056 to +0.246"),
    ],
)  # fmt: skip
def test_the_published_means_give_the_published_statistics(tmp_path, metric, arm, expected):
    report = published_report(tmp_path, arm, metric)
    lines = report.sentences()
    ours = lines[lines.index(f"{metric}, {arm} over 200 epochs:") + 1]
    assert expected in ours
    average = published.read()["cifar100"]["average"]
    cells = dict(zip(*[report.table()[place] for place in (0, -1)], strict=True))
    assert float(cells["200 epochs"]) == pytest.approx(
        average[0 if metric == "top1" else 2], abs=6e-3
    )


def test_gains_are_paired_by_seed_and_unfinished_runs_do_not_count(tmp_path):
    recipes = ["quickstart_baseline", "quickstart"]
    columns = {"plain": "quickstart_baseline", "TrAct": "quickstart"}
    sweep = make(tmp_path, recipes=recipes, columns=columns, against="plain")
    for member in sweep.members:
        gain = {0: 1.0, 1: 3.0, 2: 0.0}[member.seed] if member.column == "TrAct" else 0.0
        ended = "preempted" if member.seed == 2 and gain == 0 and member.column == "TrAct" else None
        finish(member, 90 + member.seed + gain, 10 + gain, ended or "finished")
    report = make_report(sweep, "top1")
    header, row = report.table()
    cells = dict(zip(header, row, strict=True))
    assert cells["plain"] == "91.00 ± 1.00 (3)"
    assert cells["TrAct"] == "92.50 ± 2.12 (2 of 3)"
    assert cells["gain of TrAct"].startswith("+2.00 [")  # seeds 0 and 1, not the means' 1.50
    text = report_text([report])
    assert "no row is complete" in text
    assert "training time, TrAct to plain: x 1.200 (2 pairs" in text
    write_csv([report], tmp_path / "t.csv")
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [line["n"] for line in lines] == ["3", "2"]
    assert float(lines[1]["gain"]) == 2.0
    assert r"92.50 $\pm$ 2.12 (2 of 3)" in latex([report])


def test_one_row_has_no_interval():
    assert statistics_text([0.5]) == "+0.500 points over 1 row, better in 1 of 1"
