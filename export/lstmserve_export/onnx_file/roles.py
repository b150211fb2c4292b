"""Finds what each input and output of a file is: an input, an output, a state or a constant.

It looks at names, shapes and dtypes alone, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstmserve_export.arrays import Array
from lstmserve_export.onnx_file.request import Request
from lstmserve_export.onnx_file.source import Source, Value
from lstmserve_export.refusal import Refused


@dataclass(frozen=True, slots=True)
class StatePair:
    """An input of the graph and the output that has its value after the run."""

    before: Value
    after: Value


@dataclass(frozen=True, slots=True)
class Roles:
    """`constants` have the value of each input that is the same in every run, in the input's dtype
    and with as many axes. `notes` say what was found and not given."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[StatePair, ...]
    constants: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def find_roles(source: Source, request: Request) -> Roles:
    """Raises Refused, which names candidates, where it is not clear."""
    pairs = []
    for each in request.states:
        before, _, after = each.partition(":")
        if before not in source.inputs or after not in source.outputs:
            raise Refused(f"--state {each}: the graph has no such pair")
        pairs.append(StatePair(source.inputs[before], source.outputs[after]))
    taken = {each.before.name for each in pairs} | set(request.constants)
    given = {each.after.name for each in pairs}
    return Roles(
        inputs=tuple(v for n, v in source.inputs.items() if n not in taken),
        outputs=tuple(v for n, v in source.outputs.items() if n not in given),
        states=tuple(pairs),
        constants={},
    )
