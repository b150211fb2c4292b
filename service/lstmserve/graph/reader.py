"""Reads the weights of a model.onnx: its initializers by name. It never runs the graph in it."""

from __future__ import annotations

import math

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from lstmserve.graph.weights import Weights, check_weights, weight_shapes
from lstmserve.spec import LstmSpec


class InvalidModel(ValueError):
    """A model file does not hold what its spec promises. The message says what is wrong."""


def read_weights(content: bytes, spec: LstmSpec) -> Weights:
    """Returns the spec's tensors from a serialised ModelProto. Raises InvalidModel."""
    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError as error:
        raise InvalidModel("model.onnx is not an ONNX file, or is truncated") from error
    found = {tensor.name: tensor for tensor in graph.initializer}
    weights = {}
    for name, shape in weight_shapes(spec).items():
        if name not in found:
            raise InvalidModel(f"model.onnx has no tensor {name}")
        weights[name] = _array(found[name], shape)
    try:
        check_weights(spec, weights)
    except ValueError as error:
        raise InvalidModel(f"model.onnx: {error}") from error
    return weights


def _array(
    tensor: TensorProto, shape: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Decodes a tensor after checking it: no external file, the promised size, raw float32."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise InvalidModel(f"{tensor.name} lies in another file; model.onnx must hold its weights")
    if tensor.data_type != TensorProto.FLOAT or tuple(tensor.dims) != shape:
        raise InvalidModel(f"{tensor.name} is not float32{list(shape)}")
    if len(tensor.raw_data) != 4 * math.prod(shape):
        raise InvalidModel(f"{tensor.name} has {len(tensor.raw_data)} bytes")
    return np.asarray(numpy_helper.to_array(tensor), np.float32)
