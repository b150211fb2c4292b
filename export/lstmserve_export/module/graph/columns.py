"""What a chain does to the columns of a value without any layer: factor, offset and choice.

recognise.py makes norms and a residual of it. It must not know layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lstmserve_export.arrays import Array
from lstmserve_export.lstm.network import Norm
from lstmserve_export.module.graph.chain import (
    BATCH,
    MOVES,
    WIDTH,
    Graph,
    Node,
    NotRecognised,
    Value,
    check,
    take_entry,
)

Floats = npt.NDArray[np.float64]
AFFINE = ("Add", "Sub", "Mul", "Div")


@dataclass(frozen=True, slots=True)
class Affine:
    """x * factor + offset, float64 [width] each."""

    factor: Floats
    offset: Floats

    @classmethod
    def none(cls, width: int) -> Affine:
        """Which changes nothing."""
        return cls(np.ones(width), np.zeros(width))

    def then(self, op: str, by: Floats) -> Affine:
        """This, followed by an operation of ONNX with a constant."""
        with np.errstate(all="ignore"):  # back() and forth() refuse what is not finite
            if op in ("Add", "Sub"):
                return Affine(self.factor, self.offset + by if op == "Add" else self.offset - by)
            by = by if op == "Mul" else 1 / by
            return Affine(self.factor * by, self.offset * by)

    def back(self) -> Norm:
        """As (x - mean) / scale. In float64, so the float32 that the user wrote comes out again."""
        with np.errstate(all="ignore"):
            return _norm(-self.offset / self.factor, 1 / self.factor)

    def forth(self) -> Norm:
        """As y * scale + mean. Raises NotRecognised."""
        return _norm(self.offset, self.factor)


def _norm(mean: Floats, scale: Floats) -> Norm:
    check(bool(np.isfinite(mean).all() and np.isfinite(scale).all()))
    return Norm(mean + 0.0, scale)  # no -0.0, which would be another fingerprint


def read_affine(node: Node, value: Value) -> Floats:
    """The constant of an operation with a value, [width]. Raises NotRecognised."""
    is_second = node.is_constant(1)
    check(is_second or node.op in ("Add", "Mul"))
    return per_feature(node.constant(1 if is_second else 0), value)


def per_feature(array: Array, value: Value) -> Floats:
    """A constant that meets the value in an operation of ONNX, float64 [width].

    Raises NotRecognised if it differs along another axis, or adds one.
    """
    check(array.ndim <= len(value.axes) and array.dtype == np.float32)
    shape = (1,) * (len(value.axes) - array.ndim) + array.shape
    for label, size in zip(value.axes, shape, strict=True):
        check(size == 1 or (label == WIDTH and size == value.width))
    check(WIDTH in value.axes)
    return np.broadcast_to(array.reshape(-1).astype(np.float64), value.width)


class Columns(NamedTuple):
    """Columns of the input after an affine step, and the axes that they have."""

    value: Value
    columns: tuple[int, ...]
    affine: Affine | None


def read_columns(graph: Graph, start: str, end: str, width: int) -> Columns:
    """What `end` is of the input `start` [BATCH, WIDTH]. Raises NotRecognised."""
    value, columns, affine = Value((BATCH, WIDTH), width), tuple(range(width)), None
    for link in graph.path(start, end, may_fork=False):
        node = Node(link.node, graph)
        if node.op in AFFINE:
            check(columns == tuple(range(width)))
            before = affine or Affine.none(width)
            affine = before.then(node.op, read_affine(node, value))
        elif (chosen := _chosen(node, value)) is not None:
            columns = tuple(columns[each] for each in chosen)
            value = value._replace(width=len(columns))
        elif node.op in MOVES:
            value = MOVES[node.op](node, value)
        elif node.op == "Gather":
            value = take_entry(node, value)
        else:
            raise NotRecognised
    return Columns(value, columns, affine)


def _chosen(node: Node, value: Value) -> list[int] | None:
    """Which columns a node takes; None for a node that takes none. Raises NotRecognised."""
    match node.op:
        case "Slice":
            axes = node.integers(3) if node.has(3) else []
            if len(axes) != 1 or value.axes[axes[0]] != WIDTH:
                return None
            step = node.integers(4)[0] if node.has(4) else 1
            return list(range(value.width))[node.integers(1)[0] : node.integers(2)[0] : step]
        case "Gather":
            axis, places = node.attribute("axis", 0), node.constant(1)
            if value.axes[axis] != WIDTH:
                return None
            check(places.ndim == 1)
        case "GatherND":  # x[..., [2, 0]]
            places = node.constant(1)
            check(value.axes[0] == WIDTH and node.attribute("batch_dims", 0) == 0)
            check(places.ndim == 2 and places.shape[1] == 1)
        case _:
            return None
    return [int(each) % value.width for each in places.reshape(-1)]
