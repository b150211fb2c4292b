"""What the extras bring and how to install one, for messages. Every layer can import it: it imports
nothing of the package and nothing of the extras."""

from __future__ import annotations

import importlib.util
from typing import Final

SERVER_MODULES: Final = (
    "onnxruntime",
    "onnx",
    "grpc_health",
    "prometheus_client",
    "structlog",
    "uvloop",
)


def missing_modules() -> list[str]:
    """The modules that a server needs and that are not installed."""
    return [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]


def hint(*extras: str) -> str:
    """A command for one of these extras. It works in a checkout, as nothing is published yet."""
    commands = " or ".join(f"pip install '.[{extra}]'" for extra in extras)
    return f"run {commands} in a checkout of lstmserve, which is not published yet"
