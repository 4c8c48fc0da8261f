"""Text for messages and tables."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest

GIB = 2**30


def on_one_line(text: str) -> str:
    """Replace line breaks by spaces, and escape what steers a terminal or cannot be written."""
    return "".join(c if c.isprintable() else " " if c.isspace() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """Escape a character as Python and YAML do: \\x7f, \\u2028, \\U000e0001."""
    return character.encode("unicode_escape").decode()


def short(text: str, most: int = 100) -> str:
    """Cut long text after `most` characters, for a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def brief(error: Exception) -> str:
    """Return another library's error message, or its type, on one line of 200 characters."""
    return short(" ".join(str(error).split()), 200) or type(error).__name__


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or an empty string if no choice is near."""
    match = difflib.get_close_matches(word, list(choices), n=1)
    return f"did you mean '{match[0]}'?" if match else ""


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number and its noun: `1 GPU`, `3 GPUs`; `nouns` is an irregular plural."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def listed(words: Sequence[str], most: int = 5) -> str:
    """Return the first words separated by commas, and `...` if there are more."""
    return ", ".join(words[:most]) + (" ..." if len(words) > most else "")


def align(rows: list[list[str]]) -> list[str]:
    """Return a table's rows as lines, each column aligned to the right; rows may be shorter."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return ["  ".join(map(str.rjust, row, widths)) for row in rows]


def format_bytes(number: float) -> str:
    """Return a size in GiB or, below one GiB, in MiB."""
    return f"{number / GIB:,.2f} GiB" if number >= GIB else f"{number / 2**20:,.2f} MiB"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()
) -> str:
    """Return a Markdown table with padded columns, those in `right` aligned to the right."""
    lines = [columns, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rules = [
        "-" * (width - 1) + ":" if name in right else "-" * width
        for name, width in zip(columns, widths, strict=True)
    ]
    lines.insert(1, rules)

    def padded(cell: str, name: str, width: int) -> str:
        return cell.rjust(width) if name in right else cell.ljust(width)

    return "\n".join("| " + " | ".join(map(padded, line, columns, widths)) + " |" for line in lines)
