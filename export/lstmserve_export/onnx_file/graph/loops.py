"""Finds the Loops whose number of turns a client decides: a step of theirs may take any time.

It follows values from the inputs and states through the graph, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from onnx import GraphProto, NodeProto

from lstmserve.graph.safety import subgraphs
from lstmserve_export.onnx_file.graph.splice import names_read

SIZES: Final = frozenset(("Shape", "Size"))  # they say nothing of a client's values


def loop_notes(graph: GraphProto) -> tuple[str, ...]:
    """A note that names such Loops of a graph, if there are some. The graph's inputs are what a
    client sends."""
    found = list(_open_loops(graph, {each.name for each in graph.input}))
    if not found:
        return ()
    return (
        f"what a client sends decides how many turns {', '.join(found)} takes, and a step has no "
        "time limit of its own: serve it to clients that you trust",
    )


def _open_loops(graph: GraphProto, given: set[str]) -> Iterator[str]:
    """The Loops of a graph, and of its subgraphs, whose turns depend on the values `given`, to
    which it adds what depends on them."""
    for node in graph.node:
        depends = not given.isdisjoint(names_read([node]))
        if node.op_type == "Loop" and not node.domain and _is_open(node, given):
            yield node.name or f"the Loop of {node.output[0]}"
        for inner in subgraphs(node):
            # What a body has from its node, the node reads.
            own = {each.name for each in inner.input} if depends else set()
            yield from _open_loops(inner, given | own)
        if depends and node.op_type not in SIZES:
            given.update(node.output)


def _is_open(node: NodeProto, given: Collection[str]) -> bool:
    """Whether the count or the condition of a Loop depends on values given."""
    if any(name in given for name in node.input[:2]):
        return True
    (body,) = subgraphs(node)
    inner = {*given, *(each.name for each in body.input[2:])}
    for _ in _open_loops(body, inner):
        pass
    return body.output[0].name in inner
