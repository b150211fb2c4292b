"""Edits graphs that have subgraphs: puts a branch in the place of its If, and drops dead nodes.

It must not know which branch is taken, and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from lstmserve.graph.safety import all_nodes, subgraphs


class Names:
    """The names of a graph and its subgraphs. A branch must not bring one that is there already:
    two branches may have the same."""

    def __init__(self, graph: GraphProto) -> None:
        self._counts = Counter(defined(graph))

    def spliced(
        self, graph: GraphProto, node: NodeProto, branch: GraphProto
    ) -> Iterator[NodeProto]:
        """The branch's nodes in place of the If; its weights go to the graph."""
        inner = {name: self._new(name) for name in defined(branch, is_deep=False)}
        _rename(branch, inner)
        graph.initializer.extend(branch.initializer)
        yield from branch.node
        for value, name in zip(branch.output, node.output, strict=True):
            if name:
                yield helper.make_node("Identity", [value.name], [name])

    def _new(self, name: str) -> str:
        return name if self._counts[name] == 1 else self.fresh(name)

    def fresh(self, name: str) -> str:
        """The name, or one that begins with it, which the graph does not have yet."""
        found, number = name, 0
        while found in self._counts:
            found, number = f"{name}/{number}", number + 1
        self._counts[found] = 1
        return found


def defined(graph: GraphProto, *, is_deep: bool = True) -> Iterator[str]:
    """The names of the values that the graph computes or has as weights or inputs."""
    yield from (each.name for each in graph.initializer)
    yield from (each.name for each in graph.input)
    for node in graph.node:
        yield from (name for name in node.output if name)
        if is_deep:
            for each in subgraphs(node):
                yield from defined(each)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    named: list[TensorProto | ValueInfoProto] = [*graph.initializer, *graph.input, *graph.output]
    for each in named:
        each.name = names.get(each.name, each.name)
    del graph.value_info[:]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            hidden = set(defined(inner, is_deep=False))
            _rename(inner, {old: new for old, new in names.items() if old not in hidden})


def names_read(nodes: Iterable[NodeProto]) -> set[str]:
    """Every name that the nodes read, in subgraphs too, and what subgraphs give."""
    read: set[str] = set()
    for node in all_nodes(nodes):
        read.update(node.input)
        for graph in subgraphs(node):
            read.update(each.name for each in graph.output)
    return read


def drop_dead(graph: GraphProto, kept: Collection[str] = ()) -> None:
    """Drops nodes and weights that nothing reads, but for the initializers `kept`."""
    read = {each.name for each in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if read.isdisjoint(node.output):
            continue
        for inner in subgraphs(node):
            drop_dead(inner)
        read |= names_read([node])
        nodes.append(node)
    tensors = [each for each in graph.initializer if each.name in read or each.name in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(tensors)
