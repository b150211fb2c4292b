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
from lstmserve_export.onnx_file.graph.splice import defined

BODIES: Final = ("Loop", "Scan")
PREFIX: Final = "inner/"
Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """`names` are the outputs of `model`, which are the values of its main graph. `bodies` have,
    for each Loop and Scan in it by its first output, the output of each value in its body: turn
    after turn along its first axis."""

    model: onnx.ModelProto
    names: tuple[str, ...]
    bodies: Mapping[str, Names]


def show(model: onnx.ModelProto) -> Shown:
    """Bodies within bodies, and branches, give nothing more."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    taken, bodies = {*defined(found.graph)}, {}
    for node in found.graph.node:
        if node.op_type in BODIES and not node.domain:
            (body,) = subgraphs(node)
            shown = {}
            for name in [name for each in body.node for name in each.output if name]:
                shown[name] = _free(f"{PREFIX}{name}", taken)
                taken.add(shown[name])
                _give(body, name, _free(f"{shown[name]}/row", taken))
            bodies[next(filter(None, node.output))] = shown
            results = sum(1 for _ in body.output) - len(shown)
            outputs = results - (node.op_type == "Loop")
            node.output.extend([""] * (outputs - len(node.output)))
            node.output.extend(shown.values())
            _lengthen(node, len(shown))
    names = tuple(name for node in found.graph.node for name in node.output if name)
    del found.graph.output[:]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return Shown(found, names, bodies)


def _give(body: onnx.GraphProto, name: str, result: str) -> None:
    """Adds a value to what the body gives; no value may be given twice."""
    body.node.append(helper.make_node("Identity", [name], [result]))
    body.output.append(onnx.ValueInfoProto(name=result))


def _lengthen(node: onnx.NodeProto, count: int) -> None:
    """Adds axes and directions of the new results where the node gives those of its own."""
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.extend([0] * count)


def _free(name: str, taken: set[str]) -> str:
    number, found = 0, name
    while found in taken:
        found, number = f"{name}/{number}", number + 1
    return found
