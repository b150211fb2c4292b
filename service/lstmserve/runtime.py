"""Owns the import of onnxruntime: its telemetry is off. Computes nothing.

onnxruntime 1.31 writes a device id and a database of events below ~/.cache, and sends them to its
maker, unless this variable is set before it is loaded. disable_telemetry_events() comes too late.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
