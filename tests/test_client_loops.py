"""AsyncClient and event loops: it belongs to the loop that made it, and its error says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lstmserve import AsyncClient
from zoo import Zoo

X = [1.0, 2.0, 3.0]


def test_it_is_made_in_a_coroutine() -> None:
    """Without a running loop it is refused, and the error says where to make it."""
    with pytest.raises(RuntimeError, match="make it in a coroutine"):
        AsyncClient("127.0.0.1:1")


@pytest.mark.parametrize("way", ["step", "step_many", "stream", "models"])
def test_another_loop_is_told(zoo: Zoo, way: str) -> None:
    """Every way to call from a second loop is refused, and the first loop's calls go on."""

    async def first() -> None:
        async with AsyncClient(zoo.target) as client, client.session("tiny") as session:

            async def stream() -> Any:
                return [y async for y in session.stream([X])]

            ways: dict[str, Callable[[], Awaitable[Any]]] = {
                "step": lambda: session.step(X),
                "step_many": lambda: client.step_many({session: X}),
                "stream": stream,
                "models": client.models,
            }

            async def call() -> Any:
                return await ways[way]()

            with pytest.raises(RuntimeError, match="of another event loop: make one for each"):
                await asyncio.to_thread(lambda: asyncio.run(call()))
            assert session.step_count == 0
            await ways[way]()

    asyncio.run(first())
