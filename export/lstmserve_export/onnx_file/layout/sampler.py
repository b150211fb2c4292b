"""Random values that a graph may accept: floats of several scales, integers within a vocabulary.

It reads the graph for tables that integers look up. Whether the graph accepts a value, and answers
with finite numbers, is for others to find out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from lstmserve.graph.safety import subgraphs
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.onnx_file.load.source import Value

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], Array]

# What a row of floats may look like. Loud, silent and constant rows show what mixes rows only then.
KINDS: Final[tuple[Draw, ...]] = (
    lambda rng, shape: rng.standard_normal(shape),
    lambda rng, shape: 3 * rng.standard_normal(shape),
    lambda rng, shape: 0.1 * rng.standard_normal(shape),
    lambda rng, shape: rng.random(shape),
    lambda rng, shape: np.full(shape, rng.standard_normal()),
    lambda rng, shape: 20 * rng.standard_normal(shape),
    lambda rng, shape: np.zeros(shape),
    lambda rng, shape: 0.01 + rng.random(shape),
)
BOUNDS: Final = (1000, 100, 10, 2, 1)  # of integers that look nothing up: the first that runs
# Operators through which an integer passes as it is, from their first input.
PASSING: Final = frozenset(
    (
        *("Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape"),
        *("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)


class Sampler:
    """Draws the values of inputs; the same seed and row give the same values.

    `given` has real rows by input, one after the other, which are drawn instead.
    """

    def __init__(self, model: onnx.ModelProto, given: Arrays | None = None, seed: int = 16) -> None:
        self._vocabularies = dict(_vocabularies(model.graph))
        self._given = given or {}
        self._seed = seed
        self.bound = BOUNDS[0]

    def draw(self, value: Value, shape: Shape, row: int, kind: int) -> Array:
        """Values of `shape` for a row; `kind` is an index of KINDS, for floats."""
        rng = np.random.default_rng((self._seed, row, zlib.crc32(value.name.encode())))
        dtype = np.dtype(value.dtype)
        if (given := self._given.get(value.name)) is not None:
            return _near(given, rng, shape, row).astype(dtype)
        if dtype == np.bool_:
            return np.asarray(rng.random(shape) < 0.5)
        if np.issubdtype(dtype, np.integer):
            end = self._vocabularies.get(value.name) or self.bound
            return rng.integers(0, min(end, np.iinfo(dtype).max), shape).astype(dtype)
        return np.asarray(KINDS[kind % len(KINDS)](rng, shape), dtype)


def _near(given: Array, rng: np.random.Generator, shape: Shape, row: int) -> Array:
    """A row of those given, and where these have an end, floats near one of them."""
    size = int(np.prod(shape))
    flat = given.reshape(-1)
    if flat.size < size:
        flat = np.resize(flat, size)
    count = flat.size // size
    found = flat[: count * size].reshape(count, *shape)[row % count]
    if row >= count and np.issubdtype(found.dtype, np.floating):
        found = found * rng.uniform(0.9, 1.1, shape)
    return np.asarray(found)


def _vocabularies(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """The inputs that choose rows of a constant table, and how many rows the smallest has."""
    tables = {each.name: tuple(each.dims) for each in graph.initializer}
    ends: dict[str, int] = {}
    _follow(graph, tables, {each.name: each.name for each in graph.input}, ends)
    yield from ends.items()


def _follow(
    graph: onnx.GraphProto,
    tables: dict[str, Shape],
    origins: Mapping[str, str],
    ends: dict[str, int],
) -> None:
    """Adds what the graph looks up to `ends`; `origins` has the input that a value is."""
    tables = tables | {each.name: tuple(each.dims) for each in graph.initializer}
    origins = dict(origins)
    for node in graph.node:
        if node.op_type == "Constant":
            tables |= _table(node)
        if node.op_type in ("Gather", "GatherElements") and node.input[0] in tables:
            origin = origins.get(node.input[1])
            axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
            if origin is not None and (shape := tables[node.input[0]]):
                ends[origin] = min(ends.get(origin, shape[axis]), shape[axis])
        if node.op_type in PASSING and node.input and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
        for each in subgraphs(node):
            _follow(each, tables, origins, ends)


def _table(node: onnx.NodeProto) -> dict[str, Shape]:
    for attribute in node.attribute:
        if attribute.name == "value":
            return {node.output[0]: numpy_helper.to_array(attribute.t).shape}
    return {}
