"""Sequences of the stock Triton client, in every way it can send them, held to whole sequences.

The scenarios are those of Triton's own suites for sequences and implicit state that can fail here.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triton import MODES, Answer, Triton, request
from wire import SPECS, Wire, serving

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the wire's three models, made once."""
    return tmp_path_factory.mktemp("kserve")


def rows(length: int, seed: int, model: str = "m") -> Array:
    """x float32 [T, I], or tokens int64 [T]."""
    rng = np.random.default_rng(seed)
    spec = SPECS[model]
    if spec.num_embeddings:
        return rng.integers(0, spec.num_embeddings, length)
    return rng.standard_normal((length, spec.input_size), np.float32)


def wanted(wire: Wire, xs: list[Array], model: str = "m") -> list[Array]:
    """y [T, O] of each step of one sequence, by a plain session on the whole of it."""
    y, _, _ = wire.oracles[model].run(np.concatenate(xs))
    ends = np.cumsum([len(x) for x in xs])
    return [y[end - len(x) : end] for x, end in zip(xs, ends, strict=True)]


def sequence(xs: list[Array], sequence_id: int | str, **others: Any) -> list[dict[str, Any]]:
    """Its requests, from START to END."""
    last = len(xs) - 1
    return [
        request(
            x, sequence_id, start=i == 0, end=i == last, request_id=f"{sequence_id}-{i}", **others
        )
        for i, x in enumerate(xs)
    ]


def check(wire: Wire, xs: list[Array], answers: list[Answer], model: str = "m") -> None:
    """The answers are those of the whole sequence, bit for bit."""
    assert len(answers) == len(xs)
    for each, y in zip(answers, wanted(wire, xs, model), strict=True):
        assert np.array_equal(each.y, y)


def shuffled(sequences: list[list[dict[str, Any]]], seed: int) -> list[dict[str, Any]]:
    """Their requests, each sequence's in order, in some order."""
    order = [i for i, each in enumerate(sequences) for _ in each]
    random.Random(seed).shuffle(order)
    left = [iter(each) for each in sequences]
    return [next(left[i]) for i in order]


@pytest.mark.parametrize("mode", MODES)
async def test_simple_and_ragged(triton: Triton, folder: Path, mode: str) -> None:
    """Sequences of integer and text ids, of steps of any length, mixed: each is its own, to the
    bit, and replies on a stream come in the order of the requests."""
    ids: list[int | str] = [1, "1", 2**63 - 1, "Ω/ü 💧%41" * 11, "a" * 128]
    async with serving(folder) as wire:
        inputs = [[rows(1 + (n + i) % 5, 10 * i + n) for n in range(8)] for i in range(len(ids))]
        sequences = [sequence(xs, each) for xs, each in zip(inputs, ids, strict=True)]
        requests = shuffled(sequences, seed=len(mode))
        answers = await triton.run(mode, wire.target, requests)
        assert [e.error for e in answers if e.error] == []
        assert [each.id for each in answers] == [each["request_id"] for each in requests]
        for xs, each in zip(inputs, ids, strict=True):
            mine = [a for a, r in zip(answers, requests, strict=True) if r["sequence_id"] == each]
            check(wire, xs, mine)
            assert [a.parameters["step"] for a in mine] == list(range(1, len(xs) + 1))
        assert len(wire.engine.table) == 0
        closings = wire.metrics.model("m", 1).closings
        assert (closings["client"], closings["replaced"]) == (len(ids), 0)
