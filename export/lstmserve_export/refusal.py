"""Refused, the only error that the export raises on purpose, and the words in it. Never prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MESSAGE_LEN_MAX = 2000
FAULTS_MAX = 8
LINE_LEN_MAX = 300  # of another error's message within ours
# The way out of whatever a file of tensors does not say.
MODULE_WAY = "export the whole module as it is with --module FILE.py:CLASS"


class Refused(Exception):
    """A checkpoint, module or flag that cannot be exported; nothing was written.

    It is no ValueError, so that no code which judges a file by the ValueErrors of a library takes
    a refusal for one of them.

    The message is one line that says what to do. It has printable characters only, because names
    in it come from untrusted files, and it goes to a terminal.
    """

    def __init__(self, message: str, *parts: str) -> None:
        """`parts` are the messages of several refusals in one."""
        self.parts = parts or (message,)
        line = printable(message)
        if len(line) > MESSAGE_LEN_MAX:
            line = f"{line[:MESSAGE_LEN_MAX]} ..."
        super().__init__(line)


class Faults:
    """Collects refusals that do not depend on each other, so that one run reports all of them."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keeps the refusal that ends the block, if one does."""
        try:
            yield
        except Refused as refusal:
            self._said |= dict.fromkeys(refusal.parts)

    def refuse(self) -> None:
        """Raises Refused for what was collected, if anything was."""
        said = list(self._said)
        if len(said) == 1:
            raise Refused(said[0])
        if said:
            lines = [f"({at}) {each}" for at, each in enumerate(said[:FAULTS_MAX], 1)]
            rest = f" and {len(said) - FAULTS_MAX} more" if len(said) > FAULTS_MAX else ""
            raise Refused(f"{'; '.join(lines)}{rest}", *said)


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
