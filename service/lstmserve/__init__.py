"""Python client for lstmserve: Client for threads, AsyncClient for an event loop, errors.

    from lstmserve import Client, errors

    with Client("127.0.0.1:50051") as client, client.session("weather") as session:
        y = session.step(x)

Each name loads when it is first used, because the server and the exporter import lstmserve too.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmserve import errors as errors
    from lstmserve.client import AsyncClient as AsyncClient
    from lstmserve.client import Client as Client

    __version__: str

__all__ = ["AsyncClient", "Client", "__version__", "errors"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version("lstmserve")
    if name in ("AsyncClient", "Client"):
        return getattr(importlib.import_module("lstmserve.client"), name)
    if name == "errors":
        return importlib.import_module("lstmserve.errors")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
