"""Owns how a session is opened: the call opens it. The twin of _aio.opening, with nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def opening(function: Function) -> Function:
    """The function itself: what it opens is a context manager already."""
    return function
