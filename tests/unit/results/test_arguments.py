"""Types of the tools' options: what they refuse before any work, and the options' names."""

import os

import pytest

from deit_tract.cli import Parser
from deit_tract.common.errors import UserError, UserErrors
from deit_tract.results.arguments import (
    IN_PLACE,
    SHARED,
    VERIFY,
    add_shared,
    fraction,
    given,
    new_file,
    new_folder,
    whole,
)


def refused(read, text) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("--x")
    return line


@pytest.mark.parametrize("text", ["", "x", "1.0", "-1", "11", "1e3", "\u0663", "1_0", "9" * 5000])
def test_a_whole_number_is_within_its_bounds(text):
    assert "is not a whole number from 0 to 10" in refused(whole("--x", 0, 10), text)
    assert [whole("--x", 0, 10)(good) for good in ("0", "+7", "10")] == [0, 7, 10]


@pytest.mark.parametrize("text", ["", "x", "0", "1e-9", "1.01", "nan", "inf", "-0.5"])
def test_a_fraction_is_within_its_bounds(text):
    assert "is not a number from 0.1 to 1" in refused(fraction("--x", 0.1), text)
    assert [fraction("--x", 0.1)(good) for good in ("0.1", "7e-1", "1")] == [0.1, 0.7, 1.0]


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 256, "a/" * 3000])
def test_a_name_is_one_that_a_file_can_have(text):
    refused(given("--x"), text)


def test_a_file_to_write_can_be_written(tmp_path):
    read = new_file("--x", ".csv")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in (
        ("a.txt", "does not end with .csv"),
        ("", "does not end with .csv"),
        ("folder.csv", "is a folder; name a file"),
        ("pipe.csv", "is not a plain file"),
        ("none/a.csv", "its folder does not exist; make it first"),
        (f"{'x' * 251}.csv", "cannot be written (File name too long)"),
        ("a\n.csv", "has characters that cannot be printed"),
        ("a\0.csv", "has characters that cannot be printed"),
    ):
        assert message in refused(read, f"{tmp_path}/{name}")
    assert read(f"{tmp_path}/a.csv") == tmp_path / "a.csv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "pipe.csv"]


def test_a_folder_to_write_can_be_made(tmp_path):
    read = new_folder("--x")
    (tmp_path / "file").touch()
    for name, message in (
        ("file", "is a file; name a folder"),
        ("file/deep", "is a file; name a folder"),
        ("x" * 255, "cannot be written (File name too long)"),
        ("a\nb", "has characters that cannot be printed"),
        ("a\0b", "is not a name that a file can have"),
    ):
        assert message in refused(read, f"{tmp_path}/{name}")
    assert read(f"{tmp_path}/deep/out") == tmp_path / "deep" / "out"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refused(new_file("--x"), f"{tmp_path}/a")
    assert "cannot be written" in refused(new_folder("--x"), f"{tmp_path}/a")


def test_text_that_is_not_utf8_is_refused_in_every_option():
    parser = Parser()
    add_shared(parser, *SHARED)
    with pytest.raises(UserError, match=r"command line: '/data/\\udcff' is not UTF-8 text; rename"):
        parser.parse_args(["--data-dir", "/data/\udcff"])


def test_a_hint_names_the_tools_own_option():
    error = UserError("x", "is short", "complete it, or set data.verify=false for a part")
    assert str(error.hinting(VERIFY)) == "x: is short; complete it, or give --no-verify for a part"
    several = UserErrors([UserError("x", "is missing", "give --data-dir DIR with a/ inside")])
    assert str(several.hinting(IN_PLACE)) == "x: is missing; give DIR with a/ inside"
