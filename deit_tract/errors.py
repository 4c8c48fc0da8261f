"""The one exception for mistakes of the person who runs the trainer."""


class UserError(Exception):
    """Ends a run with one line, `WHERE: WHAT; WHAT INSTEAD`, and no traceback (see `cli.main`)."""

    def __init__(self, where: object, what: str, instead: str = ""):
        super().__init__(str(where), what, instead)  # kept as arguments, so that it survives pickling in a worker

    def __str__(self) -> str:
        where, what, instead = self.args
        return on_one_line(f"{where}: {what}" + (f"; {instead}" if instead else ""))


class UserErrors(UserError):
    """Several mistakes at once, one line each."""

    def __init__(self, errors: list[UserError]):
        Exception.__init__(self, errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.args[0])


def on_one_line(text: str) -> str:
    """Text with spaces for its line breaks, and escapes for what would steer a terminal or cannot be written at all."""
    return "".join(c if c.isprintable() else " " if c.isspace() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """A character as Python and YAML escape it: \\x7f, \\u2028, \\U000e0001."""
    return character.encode("unicode_escape").decode()


def short(text: str, most: int = 100) -> str:
    """Text for a message, its end left out where it is long."""
    return text if len(text) <= most else f"{text[:most]}..."
