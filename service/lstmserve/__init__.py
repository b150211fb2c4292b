"""Serves trained LSTMs with memory. Owns the names a user imports; loads them when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmserve.client import AsyncClient as AsyncClient
    from lstmserve.client import Client as Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    # The server and the exporter import lstmserve too, and need no client.
    if name in __all__:
        import lstmserve.client

        return getattr(lstmserve.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
