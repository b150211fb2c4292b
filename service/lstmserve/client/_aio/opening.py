"""Owns how a session is opened: awaited, or entered with `async with`. No calls of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
Context = TypeVar("Context", bound=AbstractAsyncContextManager[Any])


class Opening(Generic[Context]):
    """What opens when it is awaited or entered; once."""

    def __init__(self, coroutine: Coroutine[Any, Any, Context]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Context]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> Context:
        self._opened = await self._coroutine
        entered: Context = await self._opened.__aenter__()
        return entered

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._opened.__aexit__(kind, error, traceback)


def opening(function: Callable[P, Coroutine[Any, Any, Context]]) -> Callable[P, Opening[Context]]:
    """Lets what a coroutine opens be awaited or entered."""

    @functools.wraps(function)
    def opened(*args: P.args, **kwargs: P.kwargs) -> Opening[Context]:
        return Opening(function(*args, **kwargs))

    return opened
