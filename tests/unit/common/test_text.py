"""Words and numbers in messages."""

from deit_tract.common.text import listed


def test_a_list_is_cut_after_five_words():
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c, d, e ..."
    assert listed("abc", 2) == "a, b ..."
