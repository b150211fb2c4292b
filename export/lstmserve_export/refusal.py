"""Refused, the only error that the export raises on purpose, and the words in it. Never prints."""

from __future__ import annotations

MESSAGE_LEN_MAX = 2000
LINE_LEN_MAX = 300  # of another error's message within ours
# The way out of whatever a file of tensors does not say.
MODULE_WAY = "export the whole module as it is with --module FILE.py:CLASS"


class Refused(Exception):
    """A checkpoint, module or flag that cannot be exported; nothing was written.

    The message is one line that says what to do. It has printable characters only, because names
    in it come from untrusted files, and it goes to a terminal.
    """

    def __init__(self, message: str) -> None:
        line = printable(message)
        if len(line) > MESSAGE_LEN_MAX:
            line = f"{line[:MESSAGE_LEN_MAX]} ..."
        super().__init__(line)


def printable(text: str) -> str:
    """The text with its control characters and line feeds escaped, fit for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(names: list[str], count_max: int = 8) -> str:
    """The first names joined by commas, and how many more there are."""
    rest = len(names) - count_max
    return ", ".join(names[:count_max]) + (f" and {rest} more" if rest > 0 else "")


def one_line(error: BaseException) -> str:
    """The error's message on one line, cut; its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LINE_LEN_MAX else f"{text[:LINE_LEN_MAX]} ..."


def described(error: BaseException) -> str:
    """The error's class and its message on one line, cut."""
    return f"{type(error).__name__}: {one_line(error)}"
