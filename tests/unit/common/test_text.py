"""Words and numbers in messages."""

from deit_tract.common.text import (
    align,
    brief,
    escaped,
    format_bytes,
    listed,
    nearest,
    on_one_line,
    plural,
    short,
)


def test_a_list_is_cut_after_five_words():
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c, d, e ..."
    assert listed("abc", 2) == "a, b ..."


def test_a_number_agrees_with_its_noun():
    assert plural(1, "GPU") == "1 GPU"
    assert plural(0, "GPU") == "0 GPUs"
    assert plural(1234, "batch", "batches") == "1,234 batches"


def test_another_librarys_message_is_one_short_line():
    assert brief(ValueError("no such\n  thing")) == "no such thing"
    assert brief(ValueError("x" * 300)) == "x" * 200 + "..."


def test_messages_stay_on_one_line():
    assert on_one_line("a\nb\tc\x7f\u2028d") == "a b c\\x7f d"
    assert escaped("\U000e0001") == "\\U000e0001"
    assert short("abcdef", 3) == "abc..." and short("abc", 3) == "abc"


def test_the_nearest_word_is_offered():
    assert nearest("adamv", ["adamw", "sgd"]) == "did you mean 'adamw'?"
    assert nearest("xyz", ["adamw", "sgd"]) == ""


def test_sizes_have_units():
    assert format_bytes(2**20) == "1.00 MiB" and format_bytes(3 * 2**30) == "3.00 GiB"


def test_a_tables_columns_end_at_the_same_place():
    rows = align([["lanes", "ms"], ["8", "162.6"], ["16"]])
    assert rows == ["lanes     ms", "    8  162.6", "   16"]
