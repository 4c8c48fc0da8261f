"""tools/compare.py on runs that were trained: the table and the picture."""

from tests.helpers.compare import compare, tables
from tests.helpers.runs import short, train


def test_table_and_picture(tmp_path):
    records = train(tmp_path / "ours", *short(4, "evaluate.every_steps=2"))
    train(tmp_path / "plain", *short(4, "evaluate.every_steps=2"), recipe="quickstart_baseline")
    done = compare(tmp_path / "ours", tmp_path / "plain", "--plot", tmp_path / "curves.png")
    assert done.returncode == 0, done.stderr
    ours, plain = tables(done.stdout)[0]
    assert (ours["run"], ours["tract"], ours["steps"], ours["exit"]) == (
        "ours",
        "0.1",
        "4",
        "finished",
    )
    assert ours["top1"] == f"{records[-1]['top1']:.2f}" and plain["tract"] == "-"
    assert "ours (tract 0.1) minus plain (tract -)" in done.stdout and "one seed" in done.stdout
    assert "Published" not in done.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
