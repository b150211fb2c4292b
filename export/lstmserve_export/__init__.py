"""Turns a trained recurrent network of torch into a verified model folder. Never serves.

Importing the package does not import torch; using `export` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstmserve_export.api import export
    from lstmserve_export.refusal import Refused
    from lstmserve_export.target import Exported

__all__ = ["Exported", "Refused", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lstmserve_export import api, refusal

    return getattr(refusal if name == "Refused" else api, name)
