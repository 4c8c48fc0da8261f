"""Text for messages and tables."""

import difflib
from collections.abc import Iterable


def on_one_line(text: str) -> str:
    """Text with spaces for its line breaks, and escapes for what would steer a terminal or cannot be written at all."""
    return "".join(c if c.isprintable() else " " if c.isspace() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """A character as Python and YAML escape it: \\x7f, \\u2028, \\U000e0001."""
    return character.encode("unicode_escape").decode()


def short(text: str, most: int = 100) -> str:
    """Text for a message, its end left out where it is long."""
    return text if len(text) <= most else f"{text[:most]}..."


def nearest(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?`, or nothing where no choice is near."""
    match = difflib.get_close_matches(word, list(choices), n=1)
    return f"did you mean '{match[0]}'?" if match else ""


GIB = 2**30


def format_bytes(number: float) -> str:
    return f"{number / GIB:,.2f} GiB" if number >= GIB else f"{number / 2**20:,.2f} MiB"
