"""What the tests of the Triton dialect share: sequences of requests, and their right answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tritonserving import Answer, request
from wire import SPECS, Wire

Array = npt.NDArray[Any]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wire's three models, made once; tests must not write to it."""
    return tmp_path_factory.mktemp("kserve")


def rows(length: int, seed: int, model: str = "m") -> Array:
    """x float32 [T, I], or tokens int64 [T]."""
    rng = np.random.default_rng(seed)
    spec = SPECS[model]
    if spec.num_embeddings:
        return rng.integers(0, spec.num_embeddings, length)
    return rng.standard_normal((length, spec.input_size), np.float32)


def inputs(count: int, seed: int) -> list[Array]:
    """x of `count` steps of "m", with 1 to 5 rows each."""
    return [rows(1 + (n + seed) % 5, 100 * seed + n) for n in range(count)]


def wanted(wire: Wire, xs: list[Array], model: str = "m") -> list[Array]:
    """y [T, O] of each step of one sequence, by a plain session on the whole of it."""
    y, _, _ = wire.oracles[model].run(np.concatenate(xs))
    ends = np.cumsum([len(x) for x in xs])
    return [y[end - len(x) : end] for x, end in zip(xs, ends, strict=True)]


def check(wire: Wire, xs: list[Array], answers: list[Answer], model: str = "m") -> None:
    """Asserts that the answers equal those of the whole sequence, bit for bit."""
    assert len(answers) == len(xs)
    for each, y in zip(answers, wanted(wire, xs, model), strict=True):
        assert np.array_equal(each.y, y)


def sequence(
    xs: list[Array], sequence_id: int | str, *, has_end: bool = True, **others: Any
) -> list[dict[str, Any]]:
    """The requests of a sequence, from START to END."""
    last = len(xs) - 1 if has_end else None
    return [
        request(
            x,
            sequence_id,
            start=i == 0,
            end=i == last,
            request_id=f"{sequence_id}-{i}",
            **others,
        )
        for i, x in enumerate(xs)
    ]


def shuffled(sequences: list[list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """The requests of all sequences in random order, but each sequence's own in order."""
    order = [i for i, each in enumerate(sequences) for _ in each]
    random.Random(seed).shuffle(order)
    left = [iter(each) for each in sequences]
    return [next(left[i]) for i in order]
