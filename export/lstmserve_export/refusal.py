"""Owns the one error of the export. Never prints, never exits."""

from __future__ import annotations

MESSAGE_LEN_MAX = 2000


class Refused(ValueError):
    """A checkpoint, module or flag that is not exported; nothing was written.

    The message is one printable line that says what to do: names in it come out of files that
    nobody vouches for, and end on a terminal.
    """

    def __init__(self, message: str) -> None:
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in message
        )
        if len(line) > MESSAGE_LEN_MAX:
            line = f"{line[:MESSAGE_LEN_MAX]} ..."
        super().__init__(line)


def shorten(names: list[str], count_max: int = 8) -> str:
    """The names joined by commas, the rest of a long list counted."""
    rest = len(names) - count_max
    return ", ".join(names[:count_max]) + (f" and {rest} more" if rest > 0 else "")
