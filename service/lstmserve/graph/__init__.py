"""Builds a model's two ONNX forms, portable and pool, from the same weights and spec.

numpy and onnx only: no torch, no onnxruntime, no files.
"""

from lstmserve.graph.pool import build_pool
from lstmserve.graph.portable import build_portable
from lstmserve.graph.reader import InvalidModel, read_weights
from lstmserve.graph.weights import Weights, check_weights, weight_shapes

__all__ = [
    "InvalidModel",
    "Weights",
    "build_pool",
    "build_portable",
    "check_weights",
    "read_weights",
    "weight_shapes",
]
