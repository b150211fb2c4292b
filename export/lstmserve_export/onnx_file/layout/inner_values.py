"""Makes a graph give the values within it, those in the bodies of its Loops and Scans among them.

It must not know what they are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import helper

from lstmserve.graph.safety import subgraphs
from lstmserve_export.onnx_file.graph.splice import Names

BODIES: Final = ("Loop", "Scan")
PREFIX: Final = "inner/"
ShownNames = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """`names` are the outputs of `model`, which are the values of its main graph. `bodies` have,
    for each Loop and Scan in it by its first output, the output of each value in its body: turn
    after turn along its first axis."""

    model: onnx.ModelProto
    names: tuple[str, ...]
    bodies: Mapping[str, ShownNames]


def show(model: onnx.ModelProto) -> Shown:
    """Bodies within bodies, and branches, give nothing more."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    names, bodies = Names(found.graph), {}
    for node in found.graph.node:
        if node.op_type in BODIES and not node.domain:
            (body,) = subgraphs(node)
            shown = {}
            for name in [name for each in body.node for name in each.output if name]:
                shown[name] = names.fresh(f"{PREFIX}{name}")
                _give(body, name, names.fresh(f"{shown[name]}/row"))
            bodies[next(filter(None, node.output))] = shown
            results = len(body.output) - len(shown)
            outputs = results - (node.op_type == "Loop")
            node.output.extend([""] * (outputs - len(node.output)))
            node.output.extend(shown.values())
            _lengthen(node, len(shown))
    values = tuple(name for node in found.graph.node for name in node.output if name)
    del found.graph.output[:]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    return Shown(found, values, bodies)


def _give(body: onnx.GraphProto, name: str, result: str) -> None:
    """Adds a value to what the body gives; no value may be given twice."""
    body.node.append(helper.make_node("Identity", [name], [result]))
    body.output.append(onnx.ValueInfoProto(name=result))


def _lengthen(node: onnx.NodeProto, count: int) -> None:
    """Adds axes and directions of the new results where the node gives those of its own."""
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.extend([0] * count)
