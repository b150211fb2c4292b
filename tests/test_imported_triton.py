"""Imported files served to the stock Triton client: names that the file spells otherwise, states of
several ranks and dtypes, by name, with the bits of plain onnxruntime on the file itself.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from imported import FILES, Arrays, Imports, Served, imports
from lstmserve.spec import NEXT
from scenarios import shuffled
from tritonserving import MODES, Triton, request
from wire import serving

__all__ = ["imports"]  # a fixture

CUTS = (0, 1, 4, 9)  # of a sequence into chunks
TYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


def chunk(served: Served, tensors: Arrays, sequence: int, **others: Any) -> dict[str, Any]:
    """A request with these inputs [T, *shape]."""
    return request(None, sequence, model=served.name, inputs=dict(tensors), **others)


def part(tensors: Arrays, start: int, end: int) -> dict[str, Any]:
    """Some time steps."""
    return {name: each[start:end] for name, each in tensors.items()}


def same(found: Any, wanted: Any) -> None:
    """Of one dtype and shape, bit for bit."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("mode", MODES)
async def test_sequences_of_all_files_side_by_side(
    triton: Triton, imports: Imports, mode: str
) -> None:
    """Interleaved sequences, some from given states, are each the file on its own."""
    rng = np.random.default_rng(0)
    models, files = imports
    cases = []
    for number, served in enumerate((*files.values(), *files.values()), 1):
        x = served.random(rng, CUTS[-1])
        starts = served.run(served.random(rng, 2))[1] if number % 2 else None
        asked = [
            chunk(
                served,
                part(x, *cut) | (dict(starts) if starts and not cut[0] else {}),
                number,
                start=not cut[0],
                end=cut[1] == CUTS[-1],
            )
            for cut in itertools.pairwise(CUTS)
        ]
        cases.append((served, asked, served.run(x, starts)[0]))
    order = shuffled([asked for _, asked, _ in cases], seed=1)
    async with serving(models) as wire:
        answers = await triton.run(mode, wire.target, order)
    for number, (served, _, wanted) in enumerate(cases, 1):
        own = [a for a, r in zip(answers, order, strict=True) if r["sequence_id"] == number]
        assert [each.error for each in own] == [None] * len(own)
        for spec in served.spec.outputs:
            same(np.concatenate([each.outputs[spec.name] for each in own]), wanted[spec.name])


@pytest.mark.parametrize("name", FILES)
async def test_states_by_name(triton: Triton, imports: Imports, name: str) -> None:
    """What one sequence gives as NAME.next begins another, and whole sequences take and give the
    same states."""
    rng = np.random.default_rng(2)
    served = imports[1][name]
    x = served.random(rng, 7)
    _, middle = served.run(part(x, 0, 3))
    wanted, after = served.run(part(x, 3, 7), middle)
    asked = [each.name + NEXT for each in served.spec.states]
    outputs = [each.name for each in served.spec.outputs]
    async with serving(imports[0]) as wire:
        (first,) = await triton.run(
            "stream",
            wire.target,
            [chunk(served, part(x, 0, 3), 1, start=True, outputs=asked)],
        )
        assert first.error is None
        given = {each.name: first.outputs[each.name + NEXT] for each in served.spec.states}
        for state, each in middle.items():
            same(given[state], each)
        rest = {**part(x, 3, 7), **given}
        one = {n: each[np.newaxis] for n, each in rest.items()}
        (other, whole) = await triton.run(
            "one_by_one",
            wire.target,
            [
                chunk(served, rest, 2, start=True, end=True, outputs=[*outputs, *asked]),
                request(None, model=name, inputs=one, outputs=[*outputs, *asked]),
            ],
        )
        for each in (other, whole):
            assert each.error is None, each.error
        for output, each in wanted.items():
            same(other.outputs[output], each)
            same(whole.outputs[output][0], each)
        for state, each in after.items():
            same(other.outputs[state + NEXT], each)
            same(whole.outputs[state + NEXT][0], each)


async def test_discovery(triton: Triton, imports: Imports) -> None:
    """Metadata and configuration have every tensor under the name by which it is served."""
    served = imports[1]["many_dtypes"]
    async with serving(imports[0]) as wire:
        metadata, config = await triton.tell(
            wire.target,
            ("get_model_metadata", {"model_name": served.name}),
            ("get_model_config", {"model_name": served.name}),
        )
    for group in ("inputs", "outputs"):
        assert [(e["name"], e["datatype"], e["shape"]) for e in metadata[group]] == [
            (e.name, TYPES[e.dtype], ["-1", "-1", *map(str, e.shape)])
            for e in getattr(served.spec, group)
        ]
    states = config["config"]["sequence_batching"]["state"]
    assert [(e["input_name"], e["output_name"], e["data_type"], e["dims"]) for e in states] == [
        (e.name, e.name + NEXT, f"TYPE_{TYPES[e.dtype]}", [str(n) for n in e.shape])
        for e in served.spec.states
    ]
