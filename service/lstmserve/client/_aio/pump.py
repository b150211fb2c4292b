"""Owns feeding: takes items from a source and sends them while their results are being read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TypeAlias, TypeVar

T = TypeVar("T")
U = TypeVar("U")
Source: TypeAlias = AsyncIterable[T] | Iterable[T]
Results: TypeAlias = "asyncio.Queue[Callable[[], U]]"


async def pump(source: Source[T], send: Callable[[T], U], window: int) -> AsyncGenerator[U]:
    """send(item) of each item, in order; at most `window` results wait for the reader.

    What the source or `send` raises is raised here, after the results before it.
    """
    results: asyncio.Queue[U | _End] = asyncio.Queue(window)
    feeder = asyncio.create_task(_feed(source, send, results))
    try:
        while not isinstance(result := await results.get(), _End):
            yield result
        if result.error is not None:
            raise result.error
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])


class _End:
    """Follows the last result: why there is no more."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


async def _feed(
    source: Source[T], send: Callable[[T], U], results: asyncio.Queue[U | _End]
) -> None:
    try:
        async for item in _items(source):
            await results.put(send(item))
    except Exception as error:  # whatever it is, the reader gets it
        await results.put(_End(error))
    else:
        await results.put(_End())


async def _items(source: Source[T]) -> AsyncIterator[T]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item
