"""Imports onnxruntime with its telemetry off. Every module that needs onnxruntime imports it here.

onnxruntime 1.31 writes a device id and a database of events below ~/.cache and sends them to its
maker, unless this variable is set before the import. disable_telemetry_events() comes too late.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
