"""How to install an extra, for error messages. Imports nothing, so that every layer can use it."""

from __future__ import annotations


def hint(*extras: str) -> str:
    """A command for one of these extras. It works in a checkout, as nothing is published yet."""
    commands = " or ".join(f"pip install '.[{extra}]'" for extra in extras)
    return f"run {commands} in a checkout of lstmserve, which is not published yet"
