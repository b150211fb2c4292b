"""Closing the engine at every moment of its loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from lstmserve.config import Config
from lstmserve.engine import Engine, load_models
from lstmserve.server.observe.metrics import Metrics


@pytest.mark.parametrize("passes", range(8))
async def test_close_is_heard_at_every_pass(models: Path, passes: int) -> None:
    """close() at any loop pass lets an engine that was just woken return at once."""
    config = Config(models=models, pool_bytes=1 << 20)
    engine = Engine(config, load_models(config), Metrics(CollectorRegistry()))
    running = asyncio.create_task(engine.run())
    for _ in range(20):
        await asyncio.sleep(0)
    engine.batch_loop.notice()
    for _ in range(passes):
        await asyncio.sleep(0)
    await asyncio.wait_for(engine.close(timeout_s=3600), timeout=30)
    assert await running is None
