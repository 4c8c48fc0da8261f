"""The one table that benches, comparisons and evaluations print."""

from deit_tract.common.text import table


def test_columns_are_padded_and_aligned():
    rows = [("cat", "9.5", "1,000"), ("crocodile", "10.0", "7")]
    assert table(("class", "AP", "objects"), rows, right=("AP", "objects")).splitlines() == [
        "| class     |   AP | objects |",
        "| --------- | ---: | ------: |",
        "| cat       |  9.5 |   1,000 |",
        "| crocodile | 10.0 |       7 |",
    ]


def test_a_table_without_rows_has_its_columns():
    assert table(("a", "bc"), []).splitlines() == ["| a | bc |", "| - | -- |"]
