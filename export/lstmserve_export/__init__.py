"""Turns a trained recurrent network of torch, or an ONNX file, into a verified model folder.

Importing the package does not import torch; using `export` does. It never serves.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lstmserve_export.api import export
    from lstmserve_export.import_api import import_onnx
    from lstmserve_export.refusal import Refused
    from lstmserve_export.target import Exported

__all__ = ["Exported", "Refused", "export", "import_onnx"]
MODULES: Final = {
    "Exported": "target",
    "Refused": "refusal",
    "export": "api",
    "import_onnx": "import_api",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lstmserve_export.{MODULES[name]}"), name)
