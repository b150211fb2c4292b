"""The ONNX forms of a model: built from its weights and spec, or around a step graph.

It needs numpy and onnx alone: this package imports no torch and no onnxruntime, and opens no file.
"""

from lstmserve.graph.forms import build_pool, build_portable
from lstmserve.graph.network import LstmNetwork, PoolLayout, PoolNetwork
from lstmserve.graph.reader import InvalidModel, read_weights
from lstmserve.graph.sequence import InvalidRows, SequenceNetwork, graph_sequences, lstm_sequences
from lstmserve.graph.step_network import StepNetwork
from lstmserve.graph.weights import Weights, check_weights, weight_shapes
from lstmserve.graph.window import GraphWindowNetwork, LstmWindowNetwork

__all__ = [
    "GraphWindowNetwork",
    "InvalidModel",
    "InvalidRows",
    "LstmNetwork",
    "LstmWindowNetwork",
    "PoolLayout",
    "PoolNetwork",
    "SequenceNetwork",
    "StepNetwork",
    "Weights",
    "build_pool",
    "build_portable",
    "check_weights",
    "graph_sequences",
    "lstm_sequences",
    "read_weights",
    "weight_shapes",
]
