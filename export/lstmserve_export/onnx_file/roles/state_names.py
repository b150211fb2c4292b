"""Compares names of inputs and outputs: whether they name one thing before and after a step.

A name is a set of words and a list of numbers. Words of direction, such as in, next and 0 for the
first, are left out, so that h0 and hn, or state_in_1 and state_out_1, are the same. It knows
nothing of shapes and of the graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

Likeness = Literal["same", "numbered", "part"]

# The words of memory, and the one that stands for each.
MEMORY: Final = {
    **dict.fromkeys(("h", "hx", "hs", "hidden", "hiddens"), "h"),
    **dict.fromkeys(("c", "cx", "cs", "cell", "cells"), "c"),
    **dict.fromkeys(("s", "state", "states"), "state"),
    **dict.fromkeys(("cache", "caches", "cached"), "cache"),
    **dict.fromkeys(("mem", "memory", "memories"), "memory"),
    **dict.fromkeys(("buf", "buffer", "buffers"), "buffer"),
    **dict.fromkeys(("carry", "kv", "processed"), ""),
}
EARLIER: Final = frozenset(("past", "prev", "previous", "old", "init", "initial"))
LATER: Final = frozenset(("present", "next", "nxt", "new", "updated", "final"))
DIRECTION: Final = frozenset(
    ("in", "input", "inputs", "i", "out", "output", "outputs", "o", "n", "t", "tm", "ret", "return")
) | frozenset(("cur", "curr", "current", "last", "start", "end", "before", "after"))
LEFT_OUT: Final = EARLIER | LATER | DIRECTION
_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_AFFIX: Final = "in|out|new|next|prev|past|old|init"
# Words of memory and of direction without anything between: hn, hout, nextstate.
_GLUED: Final = re.compile(
    f"({_AFFIX})?(h|c|s|hidden|cell|states?|cache|mem|memory|buffer)({_AFFIX}|n|t|i|o)?"
)


@dataclass(frozen=True, slots=True)
class Stem:
    """What a name says: `words` without those of direction, and `numbers`.

    `has_memory`: a word says that it is a memory. `is_earlier` and `is_later`: a word says that it
    is one of two moments.
    """

    words: frozenset[str]
    numbers: tuple[int, ...]
    has_memory: bool
    is_earlier: bool
    is_later: bool


@cache
def stem(name: str) -> Stem:
    """The stem of an input's or output's name."""
    text = re.sub(r":[0-9]+$", "", name)  # TensorFlow's number of an output
    text = re.sub(r"(past|present)_key_values?", r"\1_kv", text)
    found = [word for part in _PARTS.findall(text) for word in _split(part.lower())]
    words = {MEMORY.get(each) or each for each in found if not each.isdigit()}
    return Stem(
        words=frozenset(words - LEFT_OUT),
        numbers=tuple(int(each) for each in found if each.isdigit()),
        has_memory=any(each in MEMORY for each in found),
        is_earlier=not EARLIER.isdisjoint(found),
        is_later=not LATER.isdisjoint(found),
    )


def _split(word: str) -> list[str]:
    if word in MEMORY or word in LEFT_OUT or not (match := _GLUED.fullmatch(word)):
        return [word]
    return [each for each in match.groups() if each]


def likeness(before: str, after: str) -> Likeness | None:
    """How far the names agree: "same", the same words with other numbers, or the words of one are
    among those of the other. None: they have no word in common, or only a part and other numbers.
    """
    one, other = stem(before), stem(after)
    if not one.words & other.words:
        return None
    if one.words == other.words:
        return "same" if one.numbers == other.numbers else "numbered"
    is_part = one.words < other.words or other.words < one.words
    return "part" if is_part and one.numbers == other.numbers else None


def are_memory(before: str, after: str) -> bool:
    """Whether the names say that one is a memory, and the other the same after a step."""
    one, other = stem(before), stem(after)
    return (one.has_memory and other.has_memory) or (one.is_earlier and other.is_later)
