"""Imports onnxruntime with its telemetry off. Every module that needs onnxruntime imports it here.
It also opens plain sessions, as references have them.

onnxruntime 1.31 writes a device id and a database of events below ~/.cache and sends them to its
maker, unless this variable is set before the import. disable_telemetry_events() comes too late.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort", "plain_session"]

FATAL = 4  # whatever is less comes as an exception, and would only be printed beside it


def plain_session(content: bytes, *, is_optimized: bool = True) -> ort.InferenceSession:
    """Opens model.onnx on the CPU, with one thread; it prints nothing.

    onnxruntime's exceptions, here and in run(), have no base of their own but Exception.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    if not is_optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
