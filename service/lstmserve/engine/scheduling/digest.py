"""Computes the digest by which a repeated step is known to have the same input. Pure.

A multilinear hash over the input's 32-bit words (Dietzfelbinger 1996): sum of word * odd key, mod
2^64. It distinguishes a client's bug from its retry; it is no defence against an adversary, who
would damage only a session of its own. Keys come from splitmix64, so that every server has the
same ones.
"""

from __future__ import annotations

import numpy as np

from lstmserve.engine.arrays import Digests, Input

KEYS_MIN = 1024
TWO = np.uint64(2)


class _Keys:
    """The first keys of the sequence, as many as were ever needed."""

    def __init__(self) -> None:
        self._keys = _splitmix64(KEYS_MIN)

    def first(self, count: int) -> Digests:
        """The first keys, [count]."""
        if count > self._keys.size:
            self._keys = _splitmix64(2 * count)
        return self._keys[:count]


def _splitmix64(count: int) -> Digests:
    """Steele, Lea, Flood 2014: odd, so that a change of one word always changes the sum."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) | np.uint64(1)


_KEYS = _Keys()


def digest(x: Input, last_only: bool) -> int:
    """The digest of one step's x [T, ...]; never 0, which stands for an unnumbered step.

    It covers all inputs: of each row the floats and then the integers, as lstmserve/rows.py lays
    them out. Records hold digests, so their values must not change.
    """
    words = x.reshape(-1).view(np.uint32).astype(np.uint64)
    total = int(words.dot(_KEYS.first(words.size)))
    return _finish(total, len(x), last_only)


def digests_of_rows(x: Input, last_only: bool) -> Digests:
    """digest() of each x[i], each of one row: x [N, ...]."""
    words = x.reshape(len(x), -1).view(np.uint32).astype(np.uint64)
    totals: Digests = words.dot(_KEYS.first(words.shape[1]))
    totals <<= TWO
    totals += np.uint64(_tail(1, last_only))
    return totals


def _finish(total: int, length: int, last_only: bool) -> int:
    return ((total << 2) + _tail(length, last_only)) & 0xFFFF_FFFF_FFFF_FFFF


def _tail(length: int, last_only: bool) -> int:
    """Odd, so that the digest is: the length in the upper bits, last_only in the second."""
    return (length << 40) | (last_only << 1) | 1
