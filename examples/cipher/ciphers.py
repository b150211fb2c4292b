"""The two ciphers over A-Z and '-', and letters as tokens. Needs neither torch nor a server."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ-"
SHIFT = 13
KEY = "MEMORY"


def tokens(text: str) -> list[int]:
    """The letters as numbers in [0, 27). Raises ValueError for any other character."""
    return [ALPHABET.index(letter) for letter in text]


def letters(numbers: Iterable[int]) -> str:
    """The inverse of tokens()."""
    return "".join(ALPHABET[number] for number in numbers)


def encrypt_shift(text: str) -> str:
    """Moves every letter on by 13 places of 27: SECRET becomes ERPDRF."""
    return letters((token + SHIFT) % len(ALPHABET) for token in tokens(text))


def encrypt_key(text: str) -> str:
    """Moves letter n on by letter n of the key, which repeats (Vigenère)."""
    pairs = zip(tokens(text), cycle(tokens(KEY)), strict=False)
    return letters((token + key) % len(ALPHABET) for token, key in pairs)
