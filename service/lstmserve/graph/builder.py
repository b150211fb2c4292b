"""Collects the nodes, constants and values of one ONNX graph. Knows no layer of any network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
IR_VERSION = 10

DTYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class GraphBuilder:
    """Collects nodes in execution order.

    Weights become initializers, never graph inputs: onnxruntime prepacks only constants, and
    without prepacking a batch of one gives other bits.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declares a graph input; symbolic axes are strings."""
        self._inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declares the value `name` a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], shape))

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Adds an initializer, once per name, and returns its name."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def integers(self, *values: int) -> str:
        """Adds an int64 vector constant, shared by all nodes that need the same values."""
        return self.constant(f"const.{'_'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """Adds a float32 constant that broadcasts, shared by all nodes that need the value."""
        return self.constant(f"const.float_{value}", np.array(value, np.float32))

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output and returns the output's name."""
        return self.add_many(op, inputs, [output], **attributes)[0]

    def include(
        self, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto] = ()
    ) -> None:
        """Adds nodes and initializers of another graph, whose names must not be taken here."""
        self._nodes.extend(nodes)
        self._initializers |= {tensor.name: tensor for tensor in initializers}

    def add_many(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        """Adds a node with several outputs and returns their names."""
        name = next(filter(None, outputs))
        self._nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs

    def has(self, value: str) -> bool:
        """Whether a node computes `value`; several layers may share one."""
        return any(value in node.output for node in self._nodes)

    def graph(self) -> onnx.GraphProto:
        """The graph so far. The body of a Scan is a graph, too."""
        return helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            list(self._initializers.values()),
        )

    def model(
        self, opsets: Mapping[str, int] = {"": OPSET}, ir_version: int = IR_VERSION
    ) -> onnx.ModelProto:
        """The checked model; `opsets` are the versions by domain.

        Raises onnx.checker.ValidationError, which is a bug of this package unless the nodes are
        another graph's.
        """
        model = helper.make_model(
            self.graph(),
            producer_name="lstmserve",
            opset_imports=[helper.make_opsetid(*each) for each in opsets.items()],
            ir_version=ir_version,
        )
        onnx.checker.check_model(model, full_check=True)
        return model
