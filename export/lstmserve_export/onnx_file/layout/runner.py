"""Runs a file's graph in plain onnxruntime, with declared sizes relaxed, and shortens its errors.

A declared 1 may be a batch that works, and a declared name may be shared by axes that differ, so no
declaration of either kind stays. It must not know what any axis means.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import numpy as np
import onnx

from lstmserve.graph.safety import subgraphs
from lstmserve.runtime import plain_session
from lstmserve_export.arrays import Array, Arrays
from lstmserve_export.refusal import one_line

REFUSES: Final = " refuses: "
REASON_LEN_MAX: Final = 160
FAILED: Final = re.compile(r"running (\w+) node\. Name:'([^']*)' Status Message: (.*)", re.DOTALL)
LOCATION: Final = re.compile(r"\S+\.(?:cc|h|cpp):\d+ (?:[\w ]*\bonnxruntime::.*?\) |\w+ (?=\w+ ))?")
CONDITION: Final = re.compile(r"[\w.]+ [=<>!]+ [\w.]+ was false\. ")  # and what it means follows


class RunRefused(Exception):
    """onnxruntime did not run the graph on these shapes or values; the message is short, and
    `where` names the node that refused, if one did."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self._where = where

    def briefly(self, what: str) -> str:
        """Which node refuses `what`, or the message where none is named."""
        return f"{self._where} refuses {what}" if self._where else str(self)


def relaxed(model: onnx.ModelProto, free: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """The model without declared shapes, but for sizes above 1 of its inputs.

    `free` names inputs of which one axis more is free.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    _forget(found.graph)
    for value in found.graph.input:
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 1 or (free or {}).get(value.name) == at:
                dim.Clear()
    return found


def _forget(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for each in subgraphs(node):
            _forget(each)


class Runner:
    """A session of onnxruntime with one thread."""

    def __init__(
        self, model: onnx.ModelProto, constants: Arrays, free: Mapping[str, int] | None = None
    ) -> None:
        """Raises RunRefused."""
        try:
            self._session = plain_session(relaxed(model, free).SerializeToString())
        except Exception as error:  # its classes have no base of their own
            raise _refused(error) from error
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._constants = constants

    def run(self, feeds: Arrays, names: Collection[str], repeat: Arrays | None = None) -> Arrays:
        """The outputs `names`; `repeat` replaces constants. Raises RunRefused."""
        wanted = [each for each in self._outputs if each in names]
        try:
            with np.errstate(all="ignore"):
                feeds = {**self._constants, **(repeat or {}), **feeds}
                found = self._session.run(wanted, feeds)
        except Exception as error:
            raise _refused(error) from error
        return dict(zip(wanted, found, strict=True))


def _refused(error: Exception) -> RunRefused:
    text = reason(error)
    where, refuses, _ = text.partition(REFUSES)
    return RunRefused(text, where if refuses else "")


def reason(error: Exception) -> str:
    """Which operator refuses, and why, in a few words."""
    text = str(error)
    while match := FAILED.search(text):
        node, name, text = match.groups()
        if not FAILED.search(text):
            text = " ".join(CONDITION.sub("", LOCATION.sub("", text)).split())
            where = f"{node} {name}" if name else node
            return _cut(f"{where}{REFUSES}{text}")
    return _cut(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", one_line(error)))


def _cut(text: str) -> str:
    return text if len(text) <= REASON_LEN_MAX else f"{text[:REASON_LEN_MAX]} ..."


def are_finite(arrays: Iterable[Array]) -> bool:
    """Whether no value is NaN or infinite."""
    return all(
        bool(np.isfinite(each).all()) for each in arrays if np.issubdtype(each.dtype, np.floating)
    )
