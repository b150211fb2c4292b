"""Owns reading ahead: takes items from a source while those before them are being dealt with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from typing import TypeAlias, TypeVar

T = TypeVar("T")
U = TypeVar("U")
Source: TypeAlias = AsyncIterable[T] | Iterable[T]


async def pump(source: Source[T], take: Callable[[T], U], window: int) -> AsyncGenerator[list[U]]:
    """take(item) of each item, in order; as many at once as are there, at most `window`.

    What the source or `take` raises is raised here, after the results before it.
    """
    results: asyncio.Queue[U | _End] = asyncio.Queue(window)
    feeder = asyncio.create_task(_feed(source, take, results))
    try:
        result: U | _End | None = None
        while not isinstance(result, _End):
            there: list[U] = []
            result = await results.get()
            while not isinstance(result, _End):
                there.append(result)
                if results.empty() or len(there) == window:
                    break
                result = results.get_nowait()  # nobody else takes from it
            if there:
                yield there
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
    source: Source[T], take: Callable[[T], U], results: asyncio.Queue[U | _End]
) -> None:
    try:
        async for item in _items(source):
            await results.put(take(item))
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
