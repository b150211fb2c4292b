"""Brings a graph to an opset in which the pool's graphs can be written.

onnx converts it. What onnx converts wrongly is mended here, or refused: Upsample, and the Resize of
opset 10, which have other coordinates in later opsets, and Hardmax over several axes. It must not
know what the graph is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from lstmserve.graph.safety import all_nodes
from lstmserve.graph.step_graph import IR_VERSION_MIN, OPSET_MIN
from lstmserve.runtime import ort, plain_session
from lstmserve_export.refusal import Refused, one_line

OPSET_LEAST: Final = 7  # onnxruntime runs no older ones
IR_VERSION_MAX: Final = 13  # of onnxruntime 1.31
RESIZES: Final = ("Upsample", "Resize")


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 if the model imports none."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def check_opset(model: onnx.ModelProto, file: str) -> None:
    """Raises Refused for an opset that the onnxruntime here does not run."""
    version = opset(model)
    if version < OPSET_LEAST:
        raise Refused(
            f"{file} is of opset {version}, and onnxruntime runs opsets from {OPSET_LEAST}: export "
            "the model again, or convert it with onnx.version_converter and compare the answers"
        )
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    same = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    same.ir_version = IR_VERSION_MIN
    try:
        plain_session(same.SerializeToString())
    except Exception as error:  # onnxruntime's own have no base but this one
        raise Refused(
            f"{file} is of opset {version}, which is newer than onnxruntime {ort.__version__} "
            "runs: export the model again with an older opset, as in opset_version=18"
        ) from error


def convert(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """The model in opset OPSET_MIN if its own is older, otherwise itself. Raises Refused."""
    if opset(model) >= OPSET_MIN:
        return model
    resizes = list(_old_resizes(model))
    _refuse_hardmax(model, file)
    try:
        converted = version_converter.convert_version(model, OPSET_MIN)
    except Exception as error:  # onnx raises several kinds without a base of their own
        raise Refused(
            f"{file} is of opset {opset(model)}, which onnx cannot convert to {OPSET_MIN}: export "
            f"the model again with opset_version={OPSET_MIN} or later ({one_line(error)})"
        ) from error
    _mend_resizes(converted, resizes, file)
    return converted


def _refuse_hardmax(model: onnx.ModelProto, file: str) -> None:
    """Before opset 13 it flattens from `axis` on, which is the same along the last axis alone."""
    for node in all_nodes(model.graph.node):
        axis = next((e.i for e in node.attribute if e.name == "axis"), 1)
        if node.op_type == "Hardmax" and not node.domain and axis != -1:
            raise Refused(
                f"{file} has a Hardmax of opset {opset(model)} with axis {axis}, which means "
                f"another thing in later ones: export the model again with opset_version="
                f"{OPSET_MIN} or later"
            )


def _old_resizes(model: onnx.ModelProto) -> Iterator[str]:
    """The results of resizing nodes with the coordinates of opset 10 and before."""
    for node in all_nodes(model.graph.node) if opset(model) < 11 else ():
        if node.op_type in RESIZES and not node.domain:
            yield from node.output[:1]


def _mend_resizes(model: onnx.ModelProto, results: Iterable[str], file: str) -> None:
    """Gives them the coordinates that they have in onnxruntime before opset 11."""
    nodes = list(all_nodes(model.graph.node))
    constants = {each.name: each for each in model.graph.initializer}
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                constants |= dict.fromkeys(node.output, attribute.t)
    for node in nodes:
        if node.op_type != "Resize" or not set(node.output) & set(results):
            continue
        scales = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scales is None or (np.asarray(numpy_helper.to_array(scales)) < 1).any():
            raise Refused(
                f"{file} resizes {node.input[0]} as opsets before 11 do, to a smaller size or to "
                f"one that it computes: export the model again with opset_version={OPSET_MIN} or "
                "later"
            )
        kept = [e for e in node.attribute if e.name == "mode"]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
