"""Text for messages and tables."""

import difflib
from collections.abc import Iterable

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


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or an empty string if no choice is near."""
    match = difflib.get_close_matches(word, list(choices), n=1)
    return f"did you mean '{match[0]}'?" if match else ""


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number and its noun: `1 GPU`, `3 GPUs`; `nouns` is an irregular plural."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def format_bytes(number: float) -> str:
    """Return a size in GiB or, below one GiB, in MiB."""
    return f"{number / GIB:,.2f} GiB" if number >= GIB else f"{number / 2**20:,.2f} MiB"
