"""The exception for mistakes of the person who runs the trainer."""

from collections.abc import Mapping

from deit_tract.common.text import on_one_line


class UserError(Exception):
    """End a run with one line, `WHERE: WHAT; WHAT INSTEAD`, and no traceback (see `cli.main`)."""

    def __init__(self, where: object, what: str, instead: str = ""):
        # kept as arguments, so that the error survives pickling in a worker
        super().__init__(str(where), what, instead)

    def hinting(self, words: Mapping[str, str]) -> "UserError":
        """Return it with a tool's own words in its hint: {"--data-dir DIR": "DIR"}."""
        where, what, instead = self.args
        for old, new in words.items():
            instead = instead.replace(old, new)
        return UserError(where, what, instead)

    def __str__(self) -> str:
        where, what, instead = self.args
        return on_one_line(f"{where}: {what}" + (f"; {instead}" if instead else ""))


class UserErrors(UserError):
    """Several mistakes at once, one line each."""

    def __init__(self, errors: list[UserError]):
        Exception.__init__(self, errors)

    def hinting(self, words: Mapping[str, str]) -> "UserErrors":
        return UserErrors([error.hinting(words) for error in self.args[0]])

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.args[0])
